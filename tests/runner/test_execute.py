"""The runner does what ComfyUI's executor does: lists, caching, hidden inputs, inference mode, cancel."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_nodes import CALLS, NODES, Clock, node

from alignsr.nodes.host import LocalHost, get_host, use_host
from alignsr.runner import Executor, WorkflowError, WorkflowInterrupted, run_workflow


@pytest.fixture(autouse=True)
def clear_calls() -> None:
    CALLS.clear()


def run(graph: dict[str, Any], tmp_path: Path, **options: Any) -> Any:
    return run_workflow(graph, out_dir=tmp_path / "out", node_classes=NODES, progress=False, **options)


def test_called_once_per_element_and_short_lists_repeat_their_last(tmp_path: Path) -> None:
    graph = {
        "1": node("Split", count=3),
        "2": node("Split", count=2),
        "3": node("Add", a=["1", 0], b=["2", 0]),
        "4": node("Show", value=["3", 0], tag="t"),
    }
    result = run(graph, tmp_path)
    assert result.outputs["4"]["text"] == ["t:0", "t:2", "t:3"]  # 0+0, 1+1, 2+1
    assert CALLS.count("Add") == 3


def test_input_is_list_and_value_wrapper(tmp_path: Path) -> None:
    graph = {"1": node("Join", values={"__value__": ["1", 0]}, sep="-"), "2": node("Show", value=["1", 0])}
    assert run(graph, tmp_path).outputs["2"]["text"] == ["none:['1', 0]"]  # one literal that is a list, not a link
    graph = {"0": node("Split", count=3), "1": node("Join", values=["0", 0], sep="-"), "2": node("Show", value=["1", 0])}
    assert run(graph, tmp_path).outputs["2"]["text"] == ["none:0-1-2"]


def test_an_empty_list_is_an_error_of_the_input_it_reaches(tmp_path: Path) -> None:
    graph = {"1": node("Split", count=0), "2": node("Add", a=["1", 0], b=1), "3": node("Show", value=["2", 0])}
    with pytest.raises(WorkflowError, match=r"node 2 \(Add\), input 'a': expected at least one value"):
        run(graph, tmp_path)


def test_nodes_run_in_inference_mode(tmp_path: Path) -> None:
    assert run({"1": node("Mode")}, tmp_path).outputs["1"]["text"] == [True, True]
    assert not torch.is_inference_mode_enabled()


def test_coroutine_function(tmp_path: Path) -> None:
    graph = {"1": node("Later", number=4), "2": node("Show", value=["1", 0])}
    assert run(graph, tmp_path).outputs["2"]["text"] == ["none:5"]


def test_hidden_inputs(tmp_path: Path) -> None:
    result = Executor(NODES).run({"7": node("Hidden")}, extra_pnginfo={"workflow": {"a": 1}}, host=LocalHost())
    assert result.outputs["7"]["text"] == ["7", ["7"], {"workflow": {"a": 1}}, "Hidden"]


def test_missing_optional_gets_the_python_default_not_the_declared_one(tmp_path: Path) -> None:
    graph = {"1": node("Make", number=2, mode="plain"), "2": node("Show", value=["1", 0])}
    assert run(graph, tmp_path).outputs["2"]["text"] == ["none:2"]


def test_only_outputs_and_their_ancestors_run(tmp_path: Path) -> None:
    graph = {"1": node("Split", count=9), "2": node("Make", number=2, mode="plain"), "3": node("Show", value=["2", 0])}
    assert run(graph, tmp_path).executed == ["2", "3"]
    assert CALLS == ["Make", "Show"]


def test_equal_nodes_run_once_within_a_run(tmp_path: Path) -> None:
    graph = {
        "1": node("Make", number=2, mode="plain"),
        "2": node("Make", number=2, mode="plain"),
        "3": node("Show", value=["1", 0], tag="a"),
        "4": node("Show", value=["2", 0], tag="b"),
    }
    result = run(graph, tmp_path)
    assert CALLS == ["Make", "Show", "Show"]
    assert result.cached == ["2"]


def test_unique_id_keeps_equal_nodes_apart(tmp_path: Path) -> None:
    assert run({"1": node("Hidden"), "2": node("Hidden")}, tmp_path).executed == ["1", "2"]


def test_second_run_of_an_executor_skips_what_is_known() -> None:
    def graph(number: int, tag: str) -> dict[str, Any]:
        return {"1": node("Make", number=number, mode="plain"), "2": node("Show", value=["1", 0], tag=tag)}

    executor = Executor(NODES)
    assert executor.run(graph(1, "a"), host=LocalHost()).executed == ["1", "2"]
    again = executor.run(graph(1, "a"), host=LocalHost())
    assert (again.executed, again.cached) == ([], ["1", "2"])
    assert again.outputs == {"2": {"text": ["a:1"]}}  # cached outputs are shown again
    assert executor.run(graph(1, "b"), host=LocalHost()).executed == ["2"]
    assert executor.run(graph(2, "b"), host=LocalHost()).executed == ["1", "2"]
    assert executor.result("1") == [2]


def test_is_changed_reruns_on_a_new_answer_and_always_on_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = {"1": node("Clock"), "2": node("Show", value=["1", 0])}
    executor = Executor(NODES)

    def ran(stamp: Any) -> list[str]:
        monkeypatch.setattr(Clock, "STAMP", stamp)
        return executor.run(graph, host=LocalHost()).executed

    assert ran(1) == ["1", "2"]
    assert ran(1) == []
    assert ran(2) == ["1", "2"]
    assert ran(True) == ["1", "2"]
    assert ran(True) == []  # True means "never changed"
    assert ran(float("nan")) == ["1", "2"]
    assert ran(float("nan")) == ["1", "2"]


def test_results_are_freed_after_their_last_use() -> None:
    graph = {"1": node("Make", number=1, mode="plain"), "2": node("Show", value=["1", 0])}
    executor = Executor(NODES, keep_results=False)
    executor.run(graph, host=LocalHost())
    assert executor._known == {}


@pytest.mark.parametrize(
    ("tag", "line"),
    [
        ("named", "node 2 (Fail), input 'value': expected a small number, got a large one; make it smaller"),
        ("", "node 2 (Fail): KeyError: 'lost'"),
        ("none", "node 2 (Fail): return value: expected a tuple of 0 values, got NoneType; this is a bug of the node"),
        ("string", "node 2 (Fail): ui['text']: expected a list, got str; wrap it in a list"),
    ],
)
def test_failing_node_gives_one_line(tag: str, line: str, tmp_path: Path) -> None:
    graph = {
        "1": node("Make", number=1, mode="plain"),
        "0": node("Show", value=["1", 0]),
        "2": node("Fail", value=["1", 0], tag=tag),
    }
    with pytest.raises(WorkflowError) as caught:
        run(graph, tmp_path)
    assert str(caught.value) == line
    assert caught.value.partial.outputs == {"0": {"text": ["none:1"]}}


def test_expansion_is_refused(tmp_path: Path) -> None:
    graph = {"1": node("Make", number=1, mode="plain"), "2": node("Fail", value=["1", 0], tag="expand")}
    with pytest.raises(WorkflowError, match="only ComfyUI expands"):
        run(graph, tmp_path)


def test_cancel_stops_within_one_step_and_keeps_finished_outputs(tmp_path: Path) -> None:
    graph = {
        "1": node("Make", number=1, mode="plain"),
        "2": node("Show", value=["1", 0]),
        "3": node("Cancel", value=["1", 0]),
        "4": node("Show", value=["1", 0], tag="late"),
    }
    with pytest.raises(WorkflowInterrupted) as caught:
        run(graph, tmp_path)
    assert CALLS == ["Make", "Show", "step 1"]
    assert caught.value.partial.executed == ["1", "2"]
    assert caught.value.partial.outputs == {"2": {"text": ["none:1"]}}


def test_runs_on_the_calling_thread_and_off_the_main_one(tmp_path: Path) -> None:
    results: list[Any] = []
    graph = {"1": node("Make", number=1, mode="plain"), "2": node("Show", value=["1", 0])}
    thread = threading.Thread(target=lambda: results.append(run(graph, tmp_path)))
    thread.start()
    thread.join()
    assert results[0].executed == ["1", "2"]


def test_the_chosen_host_is_restored(tmp_path: Path) -> None:
    outer = LocalHost()
    with use_host(outer):
        run({"1": node("Mode")}, tmp_path)
        assert get_host() is outer


def test_unwritable_output_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkflowError, match="out_dir: expected a folder that can be written to"):
        run_workflow({"1": node("Mode")}, out_dir=tmp_path / "file" / "out", node_classes=NODES, progress=False)


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_ctrl_c_raises_after_the_step_and_restores_the_handler(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import signal, sys, time
        from alignsr.nodes.host import get_host
        from alignsr.runner import WorkflowInterrupted, run_workflow

        class Slow:
            RETURN_TYPES = ()
            OUTPUT_NODE = True
            FUNCTION = "go"
            @classmethod
            def INPUT_TYPES(cls):
                return {"required": {}}
            def go(self):
                bar = get_host().progress(1000, "slow")
                for step in range(1000):
                    print("step", step, flush=True)
                    time.sleep(0.02)
                    bar.update(step + 1)
                return ()

        try:
            run_workflow({"1": {"class_type": "Slow", "inputs": {}}}, out_dir=sys.argv[1], node_classes={"Slow": Slow})
        except WorkflowInterrupted as stop:
            print("interrupted", stop.partial.executed, signal.getsignal(signal.SIGINT) is signal.default_int_handler)
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert out.splitlines()[-1] == "interrupted [] True"
    assert "Ctrl-C again" in err
    assert "Traceback" not in err


def test_cancel_between_the_elements_of_a_list(tmp_path: Path) -> None:
    """Also where the node itself never looks: Save Image over a folder stops after the picture it is at."""
    host = LocalHost(output_dir=tmp_path)

    class Slow(NODES["Show"]):  # type: ignore[misc, name-defined]
        def show(self, *arguments: Any, **named: Any) -> Any:
            host.cancel()
            return super().show(*arguments, **named)

    graph = {"1": node("Split", count=3), "2": node("Show", value=["1", 0])}
    with pytest.raises(WorkflowInterrupted), use_host(host):
        Executor({**NODES, "Show": Slow}).run(graph, host=host)
    assert CALLS.count("Show") == 1


def test_a_damaged_title_is_only_left_out(tmp_path: Path) -> None:
    for meta in (5, None, {"title": {"a": 1}}, []):
        graph = {
            "1": {**node("Make", number=1, mode="double", text="", exact=False), "_meta": meta},
            "2": node("Show", value=["1", 0]),
        }
        assert run(graph, tmp_path, sets=["Make.number=4"]).outputs["2"]["text"]
