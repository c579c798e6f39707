"""A small real sweep, stopped before, amid and after every system call that changes its folder: nothing is ever lost.

Every state that a kill, a power cut, or a power cut on a disk that keeps names ahead of contents would leave is looked
at: what was acknowledged must be in it, and a sweep on it must end with the table of the sweep that was never stopped.
Then each fsync is taken away, and each rename put in the wrong order: something must be lost.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import yaml
from safetensors import SafetensorError
from safetensors.torch import load

from crashes import canonical
from disks import FUTURES, Disk, Tree, restore
from holdfast import checkpoints, files, store, sweeps, training
from holdfast.errors import Interrupted, StoreError
from holdfast.interrupts import Stop

Record = Callable[[str, object], None]


class Sweep:
    """One study, and what of it is promised to be kept. Texts and base are read once for all of its sweeps."""

    def __init__(self, study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.study = study
        benches: dict[object, training.Workbench] = {}
        prepare, save = sweeps.prepare, checkpoints.save_snapshot

        def prepared(*given: object, **named: object) -> training.Workbench:
            return benches.setdefault("the one", prepare(*given, **named))  # type: ignore[arg-type]

        def saved(snapshot: checkpoints.Snapshot, folder: Path) -> None:
            save(snapshot, folder)
            self.kept[folder.parent.name] = snapshot.step

        monkeypatch.setattr(sweeps, "prepare", prepared)
        monkeypatch.setattr(sweeps, "NOTE_EVERY_S", 1e9)
        monkeypatch.setattr(checkpoints, "save_snapshot", saved)
        self.planted = False
        """Whether damage was put there by hand, under a sound one's name."""
        self.forget()

    def forget(self) -> None:
        self.measured: dict[tuple[str, int, str], float] = {}
        self.kept: dict[str, int] = {}
        self.ended: set[str] = set()
        self.updates = 0

    def hear(self, at: sweeps.Progress) -> None:
        if at.state == "done":
            self.ended.add(at.run.name)
        if at.event and at.event.report:
            place = at.run.name, at.event.step, at.event.report.corpus
            assert place not in self.measured, "measured twice"
            self.measured[place] = at.event.report.kl_base_tuned.value
        elif at.event:
            self.updates += 1

    def run(self, out: Path, stop: Stop | None = None, *, tell: Callable[[sweeps.Progress], None] | None = None) -> str:
        table = sweeps.sweep(self.study, out=out, stop=stop, checkpoint_every_s=0, tell=tell or self.hear)
        return canonical(table)

    def missing(self, root: Path) -> str | None:
        """The first thing that was promised and is not in a folder; None if all is."""
        names = {name for name, _, _ in self.measured} | set(self.kept) | self.ended
        return next((what for name in sorted(names) for what in self._missing(root / name)), None)

    def _missing(self, folder: Path) -> Iterator[str]:
        try:
            run = store.read_run(folder)
        except StoreError as error:
            yield str(error)
            return
        there = {one.place: one.values["kl_base_tuned"][0] for one in run.measurements}
        for (name, step, corpus), value in self.measured.items():
            if name == run.name and there.get((step, corpus)) != value:
                yield f"{name}: the measurement of {corpus} at step {step}"
        if (folder / "adapter").is_dir() and not loads(folder / "adapter"):
            yield f"{run.name}: all of its adapter, which has its name"
        if run.state == "done":
            for name, digest in run.summary["adapter"].items():
                if not (folder / "adapter" / name).is_file() or digest != sha256(folder / "adapter" / name):
                    yield f"{run.name}: {name} of its adapter"
            return
        if run.name in self.ended:
            yield f"{run.name}: that it is done"
        if not self.planted:
            yield from (f"all of {path}" for path in folder.glob("*/step-*") if not sound(path))
        found = checkpoints.newest(folder / "checkpoint", at_most=10**9)
        if run.name in self.kept and (found is None or found.step < self.kept[run.name]):
            yield f"{run.name}: its checkpoint at step {self.kept[run.name]}"


def sound(path: Path) -> bool:
    try:
        return bool(checkpoints.verify(path))
    except StoreError:
        return False


def loads(folder: Path) -> bool:
    try:
        json.loads((folder / "adapter_config.json").read_bytes())
        return bool(load((folder / "adapter_model.safetensors").read_bytes()))
    except (OSError, ValueError, SafetensorError):
        return False


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def sweep(tiny: Path, texts: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    content = {
        "model": str(tiny),
        "dtype": "float32",
        "target": {"data": str(texts[0]), "held_out": 4},
        "retain": [str(texts[1])],
        "adapter": {"lora_dropout": 0.1},
        "optimizer": {"learning_rate": 3e-3},
        "steps": 3,
        "batch_size": 1,
        "context": 32,
        "measure": {"points": 2, "first": 1, "documents": 2},
        "grid": {"adapter.r": [1, 2]},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "whole").mkdir()
    return Sweep(tmp_path / "study.yaml", monkeypatch)


def begun(sweep: Sweep, root: Path) -> Path:
    """A folder whose first run was stopped after two steps, and then had everything happen to it that may."""
    stop = Stop()

    def tell(at: sweeps.Progress) -> None:
        if at.event and at.event.step == 2:
            stop.asked = stop.asked or signal.SIGTERM

    with pytest.raises(Interrupted):
        sweep.run(root, stop, tell=tell)
    (run,) = (folder for folder in root.iterdir() if (folder / "checkpoint").is_dir())
    records = run / "records.jsonl"
    lines = records.read_bytes().splitlines(keepends=True)
    records.write_bytes(b"".join([lines[0], lines[1].replace(b"7", b"8"), *lines[2:], lines[0][:40]]))
    shutil.copytree(run / "checkpoint" / "step-00000002", run / "checkpoint" / "step-00000003")
    with (run / "checkpoint" / "step-00000003" / "parameters.safetensors").open("ab") as file:
        file.write(b"x")
    (run / ".config.json.making").write_bytes(b"{")
    return root


def watched(sweep: Sweep, root: Path, *, look: Callable[[Disk, str], None], without: str | None = None) -> Disk:
    """The sweep on a watched disk."""
    disk: list[Disk] = []
    sweep.forget()
    with Disk(root, look=lambda moment: look(disk[0], moment), without=without).mounted() as mounted:
        disk.append(mounted)
        sweep.run(root)
    return mounted


@pytest.mark.parametrize("scenario", ["fresh", "resumed"])
def test_every_state_a_crash_can_leave_keeps_what_was_promised_and_goes_on(
    scenario: str, sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    expected = sweep.run(tmp_path / "whole")
    root = tmp_path / "runs"
    root.mkdir()
    if scenario == "resumed":
        begun(sweep, root)
        sweep.planted = True
    states, moments, disk = looked_at(sweep, root, tmp_path, pytest.fail)
    monkeypatch.setattr(files, "_fsync", lambda _: None)  # changes nothing that a living system can see
    for number, tree in enumerate(states):
        place = tmp_path / f"state-{number}"
        restore(tree, place)
        sweep.forget()
        assert sweep.run(place) == expected
        assert sweep.missing(place) is None
        shutil.rmtree(place)
    record_property(
        "Durability",
        f"a {scenario} sweep looked at before, amid and after each of {disk.calls} writes, fsyncs, renames, unlinks | "
        f"{moments} moments and futures, {len(states)} different states | nothing acknowledged lost; gone on with, "
        "each ends with the table of the sweep never stopped",
    )
    assert disk.calls > 60
    assert len(states) > 60


def looked_at(
    sweep: Sweep, root: Path, tmp_path: Path, lost: Callable[[str], None], *, without: str | None = None
) -> tuple[list[Tree], int, Disk]:
    """A sweep, and at each moment what every future would leave: (different states, moments looked at, the disk)."""
    states: dict[str, Tree] = {}
    seen: set[str] = set()
    moments = 0

    def look(disk: Disk, moment: str) -> None:
        nonlocal moments
        for future in FUTURES:
            moments += 1
            tree = disk.tree(future)
            state = hashlib.sha256(repr(sorted(tree.items())).encode()).hexdigest()
            promised = f"{len(sweep.measured)} {sorted(sweep.kept.items())} {sorted(sweep.ended)}"
            if state + promised in seen:
                continue
            seen.add(state + promised)
            states[state] = tree
            place = tmp_path / "state"
            restore(tree, place)
            missing = sweep.missing(place)
            shutil.rmtree(place)
            if missing:
                lost(f"{moment}, {future}: {missing}")

    disk = watched(sweep, root, look=look, without=without)
    return list(states.values()), moments, disk


class Lost(Exception):  # noqa: N818
    """Something was, which is all a mutant must show."""


def first_loss(sweep: Sweep, root: Path, tmp_path: Path, *, without: str | None = None) -> str | None:
    """What a sweep loses first of what it promised, if the power goes at the wrong moment; None if nothing."""

    def lost(what: str) -> None:
        raise Lost(what)

    try:
        looked_at(sweep, root, tmp_path, lost, without=without)
    except Lost as loss:
        return str(loss)
    return None


def test_without_any_one_fsync_something_is_lost(sweep: Sweep, tmp_path: Path, record_property: Record) -> None:
    (tmp_path / "look").mkdir()
    sites = watched(sweep, tmp_path / "look", look=lambda disk, moment: None).sites
    losses = {}
    for number, site in enumerate(sorted(sites)):
        (tmp_path / f"runs-{number}").mkdir()
        losses[site] = first_loss(sweep, tmp_path / f"runs-{number}", tmp_path, without=site)
    assert len(sites) >= 6
    assert all(losses.values()), losses
    record_property("Durability", f"each fsync taken away | {len(sites)} places | seen, each time: something is lost")


def renamed_too_soon(path: Path, content: bytes) -> None:
    """content flushed only when the name is there"""
    made = path.with_name(f".{path.name}.making")
    with files._opened(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as file:
        files._write(file, content)
        files._rename(made, path)
        files._fsync(file)
    files.flush(path.parent)


def folder_named_too_soon(path: Path, contents: Iterable[tuple[str, bytes]]) -> None:
    """files written under the final name"""
    files.remove(path)
    files.make_folder(path)
    for name, content in contents:
        files._write_new(path / name, content)
    files.flush(path)


def acknowledged_too_soon(path: Path, content: bytes) -> None:
    """not flushed"""
    with files._opened(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) as file:
        files._write(file, content)


@pytest.mark.parametrize(
    ("name", "mutant"),
    [("write", renamed_too_soon), ("write_folder", folder_named_too_soon), ("append", acknowledged_too_soon)],
)
def test_in_another_order_something_is_lost(
    name: str, mutant: object, sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    monkeypatch.setattr(files, name, mutant)
    (tmp_path / "runs").mkdir()
    assert first_loss(sweep, tmp_path / "runs", tmp_path) is not None
    record_property("Durability", f"`{name}` in another order: {mutant.__doc__} | 1 | seen: something is lost")


def test_a_checkpoint_let_go_of_before_the_next_is_there_would_be_missed(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test of the test: keeping none until the next is written loses work, and that is seen."""
    kept = checkpoints.save_snapshot

    def hasty(snapshot: checkpoints.Snapshot, folder: Path) -> None:
        files.remove(folder)
        kept(snapshot, folder)

    monkeypatch.setattr(checkpoints, "save_snapshot", hasty)
    (tmp_path / "runs").mkdir()
    assert "checkpoint" in str(first_loss(sweep, tmp_path / "runs", tmp_path))
