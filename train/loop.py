"""What every recipe shares: accelerate, accumulation, clipping, EMA, logging, previews, checkpoints, stop, non-finite guard.

A recipe stays a plain function that reads from top to bottom; it asks this `Loop` for the next step and hands it the losses.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.drawing import paste_rows
from ..core.records import LossTerms, PairBatch
from ..core.weights import WeightsError, write_atomic
from .config import OptimizerConfig, RunConfig, ScheduleConfig, accepted_hashes, config_hash, to_mapping
from .data import sample_seed
from .hooks import Hooks, SilentHooks, TrainResult
from .optimize import learning_rate, make_average, make_optimizer
from .origins import ORIGINS, origins, require_same, value_of
from .prefetch import Prefetch, Samples
from .processes import average_gradients, averaged_over_processes, first_index, make_accelerator, share_state
from .state import TrainState, checkpoints
from .validation import Watch

__all__ = ["Hooks", "Loop", "NonFiniteError", "SilentHooks", "Stopped", "TrainResult", "Trained", "learning_rate", "make_average"]

MAX_SKIPPED_STEPS = 20  # of fp16 training, in a row


class NonFiniteError(RuntimeError):
    """A NaN or infinity during training; the message names step, term and samples."""


class Stopped(RuntimeError):  # noqa: N818  # not an error: the user asked for it
    """The user stopped the run; the checkpoint named in the message holds everything."""


class _Cut(Exception):  # noqa: N818  # no error: it ends a validation that the user does not want to wait for
    """Leaves a validation."""


@dataclass
class Trained:
    """One trained module with its optimiser: the unit that is clipped, stepped and averaged.

    Attributes:
        module: what is trained; parameters without gradient stay out of the optimiser.
        optimizer: of this part.
        schedule: of this part.
        is_averaged: keep a moving average of its weights (unless the run has none).
    """

    module: nn.Module
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    is_averaged: bool = True


def autocast_for(run: RunConfig, device: torch.device) -> AbstractContextManager[Any]:
    """Mixed precision of a forward pass, as configured."""
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.autocast(device.type, kinds[run.precision]) if run.precision in kinds else nullcontext()


class Loop:
    """Runs the steps of a recipe. See `recipes/fidelity.py` for how it reads.

    Args:
        config: the recipe's whole config (for the hash and the record in the run folder).
        run: its run table.
        parts: name -> what is trained.
        folder: the run folder; made here.
        hooks: the host.
        resume: continue from the newest checkpoint in `folder` if any; without it a folder with checkpoints is refused.
        model_folders: where weight files are looked for by name.

    Attributes:
        origins: what the run is trained from, by content: for the header of its weights.

    Raises:
        FileExistsError: checkpoints exist and resume is False.
        WeightsError: the checkpoint belongs to another config, to a run of another number of processes, or to one from other
            weights than those that the config's names mean now.
    """

    def __init__(
        self,
        config: Any,
        run: RunConfig,
        parts: Mapping[str, Trained],
        folder: Path,
        hooks: Hooks,
        resume: bool = False,
        model_folders: Sequence[str | Path] = (),
    ) -> None:
        self.config, self.run, self.parts, self.folder, self.hooks = config, run, dict(parts), folder, hooks
        self.hash = config_hash(config)
        self.origins = origins(config, model_folders)
        if checkpoints(folder) and not resume:
            raise FileExistsError(
                f"{folder}: expected a new run folder, got one with checkpoints; pass --resume or another --out"
            )
        if run.num_threads:
            torch.set_num_threads(run.num_threads)
        self.accelerator = make_accelerator()
        self.device: torch.device = self.accelerator.device
        self.is_main: bool = self.accelerator.is_main_process
        for part in self.parts.values():
            part.module.to(self.device)
            share_state(part.module)
        self.averages = {
            name: make_average(part.module, run.ema_decay)
            for name, part in self.parts.items()
            if part.is_averaged and run.ema_decay
        }
        self.optimizers = {
            name: make_optimizer([p for p in part.module.parameters() if p.requires_grad], part.optimizer)
            for name, part in self.parts.items()
        }
        self.state = TrainState({name: part.module for name, part in self.parts.items()}, dict(self.averages), self.optimizers)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=run.precision == "fp16")
        self.logs: list[dict[str, float]] = []
        self._sums: dict[str, float] = {}
        self._updating = self._updated = False  # in this step: the parts are being updated; they have been
        self._buffers: dict[nn.Module, list[Tensor]] = {}  # as they were when the step began
        self._noted = False
        self._asked = False  # the user asked to stop while the step was validated
        self._samples: Any = None
        self._drawn: tuple[int, Any] = (0, None)  # lines of the log, and their curve
        self._skipped = dict.fromkeys(self.parts, 0)
        self._started = time.monotonic()
        if found := checkpoints(folder):
            self.state.load(found[-1], accepted_hashes(config), to_mapping(config))
            if self.scaler.is_enabled():
                self.scaler.load_state_dict(self.state.extra["scaler"])
            self._check_samples(found[-1])
            require_same(folder, self.state.extra.get(ORIGINS), self.origins, value_of(to_mapping(config), "start_from"))
            self.logs = [entry for entry in self._read_logs() if entry["step"] <= self.state.step]
        self.state.extra[ORIGINS] = self.origins
        self._elapsed = float(self.state.extra.get("seconds", 0.0))

    @property
    def samples_per_step(self) -> int:
        """Samples of one optimiser step over all processes."""
        return self.run.batch_size * self.run.accumulation_steps * int(self.accelerator.num_processes)

    @property
    def first_sample(self) -> int:
        """Index of the run's first sample: those before it were seen by the trainings that it goes on from."""
        return int(self.state.extra.get("first_sample", 0))

    @property
    def samples(self) -> int:
        """Samples seen up to where the run stands, those of the trainings that it goes on from included."""
        return self.first_sample + self.state.step * self.samples_per_step

    @property
    def batch_stride(self) -> int:
        """From the first sample of one forward pass of this process to that of its next one."""
        return self.run.batch_size * int(self.accelerator.num_processes)

    def prefetch(self, data: Samples, workers: int) -> Prefetch:
        """The training batches of this process, prepared ahead; a context manager."""
        end = self.first_sample + self.run.steps * self.samples_per_step
        return Prefetch(data, workers, self.batch_stride, end, pin=self.device.type == "cuda")

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision of the forward pass, as configured."""
        return autocast_for(self.run, self.device)

    def steps(self) -> Iterator[int]:
        """Step numbers from where the run stands to its end; after each one: log, preview, checkpoint, and stop if asked."""
        if self.is_main:
            self._write_text("config.json", json.dumps(to_mapping(self.config), indent=2, sort_keys=True))
        self._started = time.monotonic()
        while self.state.step < self.run.steps:
            self._sums, self._updated, self._noted = {}, False, False
            self._buffers = {p.module: [b.detach().clone() for b in p.module.buffers()] for p in self.parts.values()}
            # what a network draws is a function of the step, not of what came before; processes start alike, so that a layer can
            # draw for the samples of all of them and take its own (StochasticDepth), as one process would
            torch.manual_seed(sample_seed(self.run.seed, self.first_sample + self.state.step))
            for name, part in self.parts.items():
                rate = learning_rate(self.state.step, self.run.steps, part.optimizer.learning_rate, part.schedule)
                for group in self.optimizers[name].param_groups:
                    group["lr"] = rate
            try:
                yield self.state.step
                self.state.step += 1
                self._updated, self._buffers = False, {}
                self._after_step()
                stop = self.state.step < self.run.steps and self.agreed(self._asked or self.hooks.should_stop())
            except BaseException:
                # interruption by the host, Ctrl-C or an error inside a step: what is finished is kept
                self._keep_what_is_done()
                raise
            if stop:
                path = self.checkpoint()
                self._draw_curve()
                raise Stopped(f"stopped at step {self.state.step} of {self.run.steps}; continue from {path} with --resume")

    def batches(self, data: Prefetch | Samples) -> Iterator[PairBatch]:
        """The batches of this step, one per forward pass, on the device.

        Raises:
            Stopped: the user asked for it between two forward passes; the finished steps are kept.
        """
        for micro in range(self.run.accumulation_steps):
            if micro and self.agreed(self.hooks.should_stop()):
                raise Stopped(
                    f"stopped inside step {self.state.step + 1} of {self.run.steps}; finished steps are kept, "
                    "continue with --resume"
                )
            batch = data.batch(self.first_index(micro), self.run.batch_size)
            yield batch.to(self.device, non_blocking=self.device.type == "cuda")

    def backward(self, name: str, terms: LossTerms, samples: tuple[str, ...]) -> None:
        """Check, average and differentiate the loss of one forward pass of part `name`.

        Raises:
            NonFiniteError: a term is NaN or infinite.
        """
        total = terms.total().mean()
        named = {**terms.values, "loss": total}
        # one wait for the device; over processes a NaN of any of them reaches all, so that they stop together
        means = averaged_over_processes(torch.stack([values.detach().float().mean() for values in named.values()])).tolist()
        if not all(map(math.isfinite, means)):
            told = (self._complaint(name, values, term, samples) for term, values in named.items())
            raise NonFiniteError(
                next(filter(None, told), f"step {self.state.step + 1}: a term is not finite in another process; see its message")
            )
        for term, mean in zip(named, means, strict=True):
            key = self._key(name, term)
            self._sums[key] = self._sums.get(key, 0.0) + mean / self.run.accumulation_steps
        self.scaler.scale(total / self.run.accumulation_steps).backward()

    def update(self, *names: str) -> None:
        """Clip, step and average these parts, once per step and together: an interruption finds all of them updated, or none.

        Raises:
            NonFiniteError: a gradient is NaN or infinite; no part is updated.
        """
        for name in names:
            self._clip(name)
        self._updating = True
        for name in names:
            self.scaler.step(self.optimizers[name])
        for name in names:
            self.optimizers[name].zero_grad(set_to_none=True)
            if name in self.averages:
                self.averages[name].update_parameters(self.parts[name].module)  # pyright: ignore[reportCallIssue]
        self.scaler.update()
        self._updating, self._updated = False, True

    def _clip(self, name: str) -> None:
        """Average part `name`'s gradients over processes and clip them."""
        optimizer = self.optimizers[name]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        average_gradients(parameters)
        self.scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.parts[name].optimizer.max_grad_norm or math.inf)
        finite = bool(torch.isfinite(norm))
        # fp16: the scaler skips a step that overflows and lowers its scale; many in a row mean that the run has diverged
        self._skipped[name] = 0 if finite else self._skipped[name] + 1
        if self._skipped[name] > (MAX_SKIPPED_STEPS if self.scaler.is_enabled() else 0):
            raise NonFiniteError(
                f"step {self.state.step + 1}: the gradient of {name} is not finite (norm {float(norm)}); lower the learning rate"
            )
        self._sums[self._key(name, "grad_norm")] = float(norm) if finite else 0.0

    def _key(self, name: str, term: str) -> str:
        """What a term is called in the log: with a single part or the first one by its own name."""
        return term if name == next(iter(self.parts)) else f"{name}/{term}"

    def averaged(self, name: str) -> nn.Module:
        """The EMA weights when there are any, else the live ones, as a module of the original class."""
        return self.averages[name].module if name in self.averages else self.parts[name].module  # pyright: ignore[reportReturnType]

    def is_due(self, every: int) -> bool:
        """True when the step that is being finished is a multiple of `every`, or the last."""
        step = self.state.step + 1
        return bool(every) and (step % every == 0 or step == self.run.steps)

    def note(self, **values: float) -> None:
        """Add figures (a validation score, say) to the step's log.

        Raises:
            ValueError: a loss term of this step has the name; one of the two would be lost.
        """
        if taken := self._sums.keys() & values.keys():
            raise ValueError(f"values: expected names that no loss term has, got {', '.join(sorted(taken))}; rename one of them")
        self._sums |= values
        self._noted = True

    def validate(self, scores: Callable[[Watch], Mapping[str, float]]) -> bool:
        """Add the figures of a validation to the step's log, see `note`; who asks to stop meanwhile need not wait for its end.

        The step then ends as any other after which the run is stopped, without these figures.

        Args:
            scores: validates; calls what it is given before every picture, which shows progress and may raise.

        Returns:
            Whether it came to its end. Where not, show no samples either: the user waits for the run to stop.
        """
        try:
            self.note(**scores(self._watch))
        except _Cut:
            self._asked = self._noted = True
        return not self._asked

    def _watch(self, done: int, total: int) -> None:
        self.hooks.validating(done, total)
        if self.hooks.should_stop():
            raise _Cut

    def first_index(self, micro: int) -> int:
        """Number of the first sample of this process's forward pass `micro` of the step."""
        ranks = int(self.accelerator.num_processes), int(self.accelerator.process_index)
        return self.first_sample + first_index(self.run, self.state.step, micro, *ranks)

    def stop_together(self, complaint: str) -> None:
        """Stop all processes where one of them has a complaint about what is not finite; empty: none.

        Raises:
            NonFiniteError: with the complaint, or pointing at the process that has it.
        """
        if self.agreed(bool(complaint)):
            elsewhere = f"step {self.state.step + 1}: a term is not finite in another process; see its message"
            raise NonFiniteError(complaint or elsewhere)

    def watch(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Figures of one forward pass, for the log where one is due: means over the step's forward passes and all processes.

        Args:
            values: name -> scalar tensor; names that no loss term has.

        Returns:
            This forward pass's means over processes.
        """
        means = averaged_over_processes(torch.stack([value.detach().float() for value in values.values()])).tolist()
        found = dict(zip(values, means, strict=True))
        for name, mean in found.items():
            self._sums[name] = self._sums.get(name, 0.0) + mean / self.run.accumulation_steps
        return found

    def show(self, samples: Any) -> None:
        """Show a PIL picture of samples below the curve from now on, and keep the newest in the run folder."""
        self._samples = samples
        write_atomic(self.folder / "samples.png", samples.save)

    def checkpoint(self) -> Path | None:
        """Save the state (main process) and return its path."""
        if not self.is_main:
            return None
        self.state.extra["scaler"] = self.scaler.state_dict()
        self.state.extra["samples"] = self.samples
        self.state.extra["seconds"] = self._elapsed + time.monotonic() - self._started
        self._write_text("log.jsonl", "".join(json.dumps(entry) + "\n" for entry in self.logs))
        return self.state.save(self.folder, self.hash, self.run.keep_checkpoints)

    def curve(self) -> Any:
        """The loss curve so far as a PIL image."""
        from ..core.pictures import curves

        hidden = ("step", "seconds", "learning_rate", "grad_norm")
        keys = [key for key in (self.logs[-1] if self.logs else {}) if key.rpartition("/")[2] not in hidden]
        series = {
            key: [(entry["step"], entry[key]) for entry in self.logs if key in entry] for key in dict.fromkeys(["loss", *keys])
        }
        title = self.folder.name.removesuffix(f"-{self.hash}")  # the hash covers paths: the same run elsewhere has the same curve
        shown = {key: points for key, points in series.items() if points}
        decibels = [key for key in shown if "psnr" in key.rpartition("/")[2]]
        return curves(shown, x_label="step", title=title, decibels=decibels)

    def finish(self) -> None:
        """Last checkpoint and end of the processes' group."""
        if not checkpoints(self.folder) or not str(checkpoints(self.folder)[-1]).endswith(f"{self.state.step:08d}.safetensors"):
            self.checkpoint()
        self._draw_curve()
        self.accelerator.wait_for_everyone()

    def _after_step(self) -> None:
        done = self.state.step
        seconds = self._elapsed + time.monotonic() - self._started
        first = next(iter(self.optimizers.values()))
        entry = {
            "step": float(done),
            **self._sums,
            "learning_rate": float(first.param_groups[0]["lr"]),
            "seconds": round(seconds, 2),
        }
        if done % self.run.log_every == 0 or done in (1, self.run.steps) or self._noted:
            self.logs.append(entry)
        if self.is_main:
            if self.run.preview_every and (done % self.run.preview_every == 0 or done == self.run.steps) and len(self.logs) > 1:
                curve = self._draw_curve()
                self.hooks.preview(curve if self._samples is None else paste_rows([curve, self._samples]))
            if done % self.run.checkpoint_every == 0 or done == self.run.steps:
                self.checkpoint()
            self.hooks.progress(done, self.run.steps, entry)

    def _draw_curve(self) -> Any:
        """The curve as a picture, in the run folder too; drawn once per state of the log."""
        if self.is_main and self.logs and len(self.logs) != self._drawn[0]:
            self._drawn = (len(self.logs), self.curve())
        if self._drawn[1] is not None:
            write_atomic(self.folder / "curve.png", self._drawn[1].save)
        return self._drawn[1]

    def _keep_what_is_done(self) -> None:
        """Checkpoint after an interruption, unless it came while parts were being updated: that is no state to resume from."""
        if self._updating:
            return
        if self._updated:
            self.state.step += 1
            self._updated = False
        else:  # statistics that forward passes of the unfinished step have moved
            for module, buffers in self._buffers.items():
                for buffer, before in zip(module.buffers(), buffers, strict=True):
                    buffer.copy_(before)
        saved = checkpoints(self.folder)
        if self.state.step and not (saved and saved[-1].stem.endswith(f"{self.state.step:08d}")):
            self.checkpoint()
            self._draw_curve()

    def _complaint(self, name: str, values: Tensor, term: str, samples: tuple[str, ...]) -> str:
        """What to say about a term that is not finite; empty when it is."""
        finite = torch.isfinite(values.detach())
        if bool(finite.all()):
            return ""
        bad = [samples[i] for i in (~finite).nonzero().flatten().tolist()[:8]] if values.ndim else list(samples[:8])
        part = f" of {name}" if len(self.parts) > 1 else ""
        return (
            f"step {self.state.step + 1}: term {term}{part} is not finite for {', '.join(bad)}; "
            "look at these samples or lower the learning rate"
        )

    def agreed(self, flag: bool) -> bool:
        """Whether any process raised the flag: all of them must leave a step together, or the rest would wait for ever."""
        if int(self.accelerator.num_processes) == 1:
            return flag
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=self.device), reduction="sum") > 0)

    def _check_samples(self, path: Path) -> None:
        """The samples that the checkpoint's run has seen are those that so many steps of this many processes see."""
        there = int(self.state.extra.get("samples", self.samples))  # checkpoints of older versions do not say
        if there == self.samples:
            return
        now = int(self.accelerator.num_processes)
        before = (there - self.first_sample) * now // (self.samples - self.first_sample)
        raise WeightsError(
            f"processes: expected {before}, with which {path} was written, got {now}; another number takes steps of another "
            "batch from another place in the sequence of samples: resume with as many as before, or choose another run folder"
        )

    def _read_logs(self) -> list[dict[str, float]]:
        path = self.folder / "log.jsonl"
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []

    def _write_text(self, name: str, text: str) -> None:
        def write(temporary: Path) -> None:
            temporary.write_text(text, encoding="utf-8")

        write_atomic(self.folder / name, write)
