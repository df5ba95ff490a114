"""Switches of pipeline A that other tests leave at their defaults: each changes what it names, and nothing else."""

import torch
from candidates_helpers import pictures, run, small
from preference_helpers import dpo, sample, write_control

from alignsr.train.candidates import CandidateStore, load_candidates_config, run_candidates
from alignsr.train.recipes import perceptual_dpo


def test_skip_leaves_out_the_first_pictures(tmp_path):
    data = pictures(tmp_path / "gt", 4)
    whole = run(small(data), tmp_path / "whole").store.names
    assert run(small(data, data__skip=1, data__limit=2), tmp_path / "part").store.names == whole[1:3]


def test_a_shared_cache_gives_another_run_its_scores(tmp_path, monkeypatch):
    data, cache = pictures(tmp_path / "gt", 2), tmp_path / "cache"
    one = run(small(data, scoring__cache=cache.as_posix()), tmp_path / "one")
    assert any(cache.rglob("*")) and not (one.folder / "cache").exists()
    monkeypatch.setattr("alignsr.train.candidates.score.Scorer", None)  # nothing is scored
    two = run(small(data, scoring__cache=cache.as_posix()), tmp_path / "two")
    assert (one.folder / "scores.parquet").read_bytes() == (two.folder / "scores.parquet").read_bytes()


def test_sampler_and_control_scale_change_the_candidates(tmp_path):
    data, found, branch = pictures(tmp_path / "gt", 1), [], write_control(tmp_path, "sd2")  # the tiny one changes nothing
    for number, more in enumerate(("", 'sampling.sampler="ddim"', "sampling.control_scale=0.25")):
        sets = [f'data.folders=["{data.as_posix()}"]', f'model.control="{branch.as_posix()}"', *filter(None, [more])]
        folder = tmp_path / str(number)
        run_candidates(load_candidates_config("tiny-dp2o-candidates-sd2", sets), folder, until="sample")
        store = CandidateStore(folder)
        found.append(store.latents(store.entry(0), 0))
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_the_probe_samples_with_its_own_steps(tmp_path, monkeypatch):
    from alignsr.train import guard

    seen, drawer = [], guard.drawer
    monkeypatch.setattr(guard, "drawer", lambda settings, *rest: seen.append(settings.sampling.steps) or drawer(settings, *rest))
    pairs = sample(tmp_path, "pixel")
    perceptual_dpo.train(dpo("tiny-dp2o-pixel", pairs, guard__steps=3, run__preview_every=0), tmp_path / "run")
    assert seen and set(seen) == {3}
