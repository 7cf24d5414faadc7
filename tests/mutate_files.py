"""Mutated files through the whole command: each must give an image, or one line that says what is wrong.

    python tests/mutate_files.py [--format twix-vd ...] [--count 2000] [--first 0] [--keep DIR] [--log FILE]

A seed makes one file of its format, by bytes or by what the format says, and the arguments beside it. The command runs
in a process that is used for many files, with a limit of memory; one that hangs or dies is replaced. Told are
tracebacks, hangs, deaths, what is printed besides, images that hold NaN, and results that a refusal leaves behind.
Exit code 1 if there was any. test_mutated_files.py runs a few. PYRECON_MUTATIONS=1 tells what could not be written.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import functools
import io
import json
import os
import queue
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import small_scans as small
from mutations import (
    Damage,
    Rng,
    attributes,
    bart_sizes,
    damaged_bytes,
    damaged_hdf5,
    damaged_npz,
    inside_gzip,
    matlab,
    pick,
    protocol,
    readouts,
    volume,
    xml_in,
)

SECONDS = 30  # for one small file, on a machine that does other things too
MEMORY = 4 * 2**30  # that a command may ask for beyond what the process has at its start


@dataclass(frozen=True)
class Format:
    write: Callable[[Path, int], None]
    variants: int
    command: tuple[str, ...]  # {} is the folder
    structured: Damage  # of the file that is chosen
    target: str = ""  # the file to damage; any, if not given
    options: tuple[tuple[str, ...], ...] = ((),)  # of which a seed takes one
    targets: tuple[str, ...] = (".nii.gz", ".nii", ".npz", ".h5", ".png")


# --- sound files, hostile arguments --------------------------------------------------------------------------------
SAID = ("nan", "inf", "-inf", "-1", "0", "1e308", "1e-308", "1e20", "1e-20", "", "x", "none", "true", "2", "3", "0.5",
        "-2147483649", "99999999999", "1,2", "½")  # fmt: skip
WHATEVER: dict[str, tuple[tuple[str, ...], ...]] = {
    "mri": (("-m", "nothing"), ("--maps-out", "{}/no/maps.npz"), ("--maps-out", "{}/maps.png"), ("--views", "1"),
            ("-s", "{}/system.mdf"), ("--weights", "{}/none.safetensors"), ("-m", "joint", "--weights", "nothing")),
    "ct": (("--views", "5:2"), ("--views", "::0"), ("--views", "a"), ("--views", "99999999999:"), ("--shape", "0", "5"),
           ("--shape", "100000", "100000"), ("--shape", "1048577", "1"), ("--pixel-size", "nan"), ("--center", "3"),
           ("--pixel-size", "inf"), ("--pixel-size", "1e-9"), ("--pixel-size", "1e300"), ("--shape", "1", "1"),
           ("--rows", "2"), ("--detector-pixel", "1"), ("--maps-out", "{}/maps.npz"), ("--views", "-1:")),
    "mpi": (("--band", "nan", "nan"), ("--band", "9", "1"), ("--band", "-inf", "inf"), ("--snr-threshold", "nan"),
            ("--snr-threshold", "inf"), ("--snr-threshold", "0"), ("--average", "99999999999"), ("--average", "0"),
            ("--upsample", "100000"), ("--upsample", "3"), ("-s", "{}/measurement.mdf"), ("-s", "{}/nothing")),
    "fit": (("--times", "nan,1,2,3"), ("--times", "1,1,1,1"), ("--times", "-1,0,1,2"), ("--times", "1e300,1,2,3"),
            ("--times", "1"), ("--times", ""), ("--times", "1e-30,2e-30,3e-30,4e-30"), ("--noise-std", "nan"),
            ("--noise-std", "1e300"), ("--noise-std", "1e-30"), ("--repetition-time", "0"), ("--offset",),
            ("--repetition-time", "nan"), ("--repetition-time", "1e-300"), ("--efficiency", "nan"), ("--b1", "{}"),
            ("--mask", "{}/series.nii.gz"), ("--table", "{}/t.txt"), ("--table", "{}/no/t.csv"), ("--component", "x"),
            ("--flip-angles", "1,2,3,4"), ("--refocusing-angle", "nan"), ("--t1", "nan"), ("--table", "{}/t.csv")),
}  # fmt: skip
ALWAYS = (("--device", "cuda:9"), ("--device", "x"), ("--device", "meta"), ("--device", ""), ("--figure", "{}/f.xyz"),
          ("--figure", "{}/no/f.png"), ("--figure", "{}"), ("-o", "{}/no/out.nii"), ("-o", "{}"), ("-o", "{}/out"),
          ("-o", ""), ("-o", "/dev/full/x.nii"), ("-o", "{}/" + 300 * "x" + ".nii"), ("-o", "{}/.nii"), ("--nothing",),
          ("--dry-run",), ())  # fmt: skip


def hostile(folder: Path, rng: Rng) -> list[str]:
    """Arguments for one of the sound files in a folder: wrong settings, sizes, places, or nothing wrong."""
    from pyrecon.cli import _settings
    from pyrecon.models import ct, mpi, mri

    what = pick(rng, tuple(WHATEVER))
    if what == "fit":
        kind = pick(rng, ("ir", "sr", "molli", "vfa", "t2", "epg", "t2star"))
        command = ["fit", kind, "{}/series.nii.gz"]
    else:
        file = {"mri": "scan.h5", "ct": "sinogram.h5", "mpi": "measurement.mdf"}[what]
        command = ["reconstruct", f"{{}}/{file}", *(["-s", "{}/system.mdf"] if what == "mpi" else [])]
        known: dict[str, Any] = {"mri": mri.METHODS, "ct": ct.METHODS, "mpi": mpi.METHODS}[what]
        method = pick(rng, [name for name in known if name != "joint" or rng.integers(4) == 0])
        names = list(_settings.names(known[method]))
        if rng.integers(3):
            command += ["-m", method]
            for _ in range(pick(rng, (0, 1, 1, 2))):
                command += ["-p", f"{pick(rng, names or ['x'])}={pick(rng, SAID)}"]
    for options in (WHATEVER[what], ALWAYS):
        if rng.integers(2):
            command += pick(rng, options)
    return [part.replace("{}", str(folder)) for part in command]


def sound_files(folder: Path, variant: int) -> None:
    small.ismrmrd(folder, variant)
    small.mpi(folder, 0)
    small.sinogram(folder, variant, suffix=".h5")
    (folder / "scan.h5").rename(folder / "sinogram.h5")
    small.ismrmrd(folder, variant)
    small.nifti(folder, 0)


# --- the formats ---------------------------------------------------------------------------------------------------
RECONSTRUCT, FIT = ("reconstruct",), ("fit", "sr", "{}")
USUAL = ((),) * 8  # most often nothing is said; what takes longest least often
MRI = (
    *USUAL,
    *2 * (("-m", "cg-sense", "--maps-out", "{}/maps.npz"), ("-m", "tv-sense")),
    ("-m", "joint", "-p", "max_iter=30"),
)
ARRAYS = (*MRI, *USUAL, ("--fov", "220,220,5"), ("--axes", "CHW"), ("--coils", "1"))
T1 = (*MRI, ("-m", "sense-fit", "-p", "max_iter=4"))
CT = (*USUAL, ("-m", "fbp"), ("-m", "tv"), ("--views", "::2"), ("--shape", "9", "7"), ("--figure", "{}/figure.png"))
MPI = (*USUAL, ("-m", "tikhonov"), ("-m", "art"), ("--band", "2e4", "6e4"), ("--average", "2"), ("--upsample", "2"))
MAPS = (".nii.gz", ".nii", ".npz", ".h5")
FORMATS = {
    "twix-vb": Format(partial(small.twix, ve=False), 4, (*RECONSTRUCT, "{}/meas.dat"), protocol, options=MRI),
    "twix-vd": Format(partial(small.twix, ve=True), 4, (*RECONSTRUCT, "{}/meas.dat"), protocol, options=MRI),
    "ismrmrd": Format(small.ismrmrd, 6, (*RECONSTRUCT, "{}/scan.h5"), readouts, options=T1, targets=MAPS),
    "fastmri": Format(small.fastmri, 2, (*RECONSTRUCT, "{}/file.h5"), xml_in("ismrmrd_header"), options=MRI),
    "arrays-npz": Format(
        partial(small.arrays, suffix=".npz"), 2, (*RECONSTRUCT, "{}/scan.npz"), damaged_npz, options=ARRAYS
    ),
    "arrays-mat": Format(
        partial(small.arrays, suffix=".mat"), 2, (*RECONSTRUCT, "{}/scan.mat"), matlab, options=ARRAYS
    ),
    "bart": Format(partial(small.arrays, suffix=".cfl"), 2, (*RECONSTRUCT, "{}/scan.cfl"), bart_sizes, options=ARRAYS),
    "inspect": Format(
        sound_files, 3, ("inspect",), lambda path, rng: (damaged_hdf5 if rng.integers(2) else readouts)(path, rng),
        "scan.h5", (("{}/scan.h5",), ("{}/scan.h5", "--whole"), ("{}/scan.h5", "--json")),
    ),
    "mdf": Format(
        small.mpi, 2, (*RECONSTRUCT, "{}/measurement.mdf", "-s", "{}/system.mdf"), damaged_hdf5, "measurement.mdf", MPI
    ),
    "mdf-system-matrix": Format(
        small.mpi, 2, (*RECONSTRUCT, "{}/measurement.mdf", "-s", "{}/system.mdf"), damaged_hdf5, "system.mdf", MPI
    ),
    "htc": Format(small.htc, 2, (*RECONSTRUCT, "{}/scan.mat"), matlab, options=CT),
    "data-exchange": Format(
        small.exchange, 2, (*RECONSTRUCT, "{}/scan.h5"), damaged_hdf5,
        options=(*((*some, "--detector-pixel", "9") for some in CT), (), ("--center", "6"), ("--rows", "1")),
    ),
    "sinogram-npz": Format(
        partial(small.sinogram, suffix=".npz"), 4, (*RECONSTRUCT, "{}/scan.npz"), damaged_npz, options=CT
    ),
    "sinogram-hdf5": Format(
        partial(small.sinogram, suffix=".h5"), 4, (*RECONSTRUCT, "{}/scan.h5"), damaged_hdf5, options=CT
    ),
    "dicom": Format(small.dicom, 2, FIT, attributes, targets=MAPS),
    "nifti": Format(small.nifti, 3, FIT, volume, targets=MAPS),
    "arguments": Format(sound_files, 3, ("fit", "sr", "{}/series.nii.gz"), lambda path, rng: None, targets=MAPS),
}  # fmt: skip


def mutated(name: str, seed: int, sound: Path, folder: Path) -> tuple[Path, list[str], str]:
    """The folder with the damaged file and the arguments of the command; the file's name."""
    kind, rng = FORMATS[name], np.random.default_rng((abs(seed), sum(map(ord, name))))
    variant = int(rng.integers(kind.variants))
    whole = sound / name / str(variant)
    if not whole.exists():
        whole.mkdir(parents=True)
        kind.write(whole, variant)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    if name == "arguments" and seed >= 0:
        output = folder / f"out{pick(rng, kind.targets)}"
        arguments = hostile(folder, rng)
        return output, [*arguments, *([] if "-o" in arguments else ["-o", str(output)])], ""
    options = kind.options[0] if seed < 0 else pick(rng, kind.options)
    file = folder / (kind.target or pick(rng, sorted(path.name for path in folder.iterdir())))
    content, bytewise = file.read_bytes(), rng.integers(2) == 0
    if not bytewise and seed >= 0:  # below it the sound one
        try:
            kind.structured(file, rng)
        except Exception as error:  # of libraries that do not write such a thing
            bytewise = True
            if os.environ.get("PYRECON_MUTATIONS"):
                print(name, seed, f"{type(error).__name__}: {error}")
    if bytewise and seed >= 0:
        change = inside_gzip(damaged_bytes) if file.suffix == ".gz" and rng.integers(2) else damaged_bytes
        file.write_bytes(change(content, rng))
    output = folder / f"out{pick(rng, kind.targets)}"
    asked = ["--json"] if rng.integers(2) else []
    command = [part.replace("{}", str(folder)) for part in (*kind.command, *options)]
    if kind.command == ("inspect",):  # makes no file
        return output, command, file.name
    return output, [*command, "-o", str(output), *asked], file.name


# --- one command, in the process that runs them ----------------------------------------------------------------------
def outcome(name: str, seed: int, sound: Path, folder: Path) -> dict[str, str]:
    """``kind``: "image", "refused", or what is wrong; ``told`` in words."""
    from pyrecon import cli

    output, arguments, _ = mutated(name, seed, sound, folder)
    out, err, code = io.StringIO(), io.StringIO(), 0
    sys.argv = ["pyrecon", *arguments]
    shown = warnings.showwarning
    with warnings.catch_warnings(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        warnings.simplefilter("default")
        try:
            cli.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException as error:
            kind = "memory" if isinstance(error, MemoryError) else "traceback"
            return {"kind": kind, "told": "".join(traceback.format_exception(error)[-3:])}
        finally:
            warnings.showwarning = shown
    lines = [line for line in err.getvalue().splitlines() if not line.startswith("warning: ")]
    errors = [line for line in lines if line.startswith("error: ")]
    usage = code == 2 and lines and lines[0].startswith("Usage: ")  # click's own words, of several lines
    if code == 0 and not lines and ("--dry-run" in arguments or str(output) not in arguments):
        return {"kind": "image", "told": ""}
    if code == 0 and not lines:
        return _judged(output, out.getvalue(), arguments)
    if code == 1 and name == "arguments" and lines[0].startswith("error: out of memory"):
        return {"kind": "refused", "told": lines[0]}  # what was asked for, more than the limit of this process
    if usage or (code == 2 and len(errors) == len(lines) == 1):
        if output.exists():
            return {"kind": "left behind", "told": err.getvalue()}
        return {"kind": "refused", "told": "\n".join(lines)}
    return {"kind": f"exit {code}", "told": err.getvalue()}


def _judged(output: Path, printed: str, arguments: list[str]) -> dict[str, str]:
    """An image that can be read and is finite (maps have NaN where nothing was fitted), and a report."""
    from pyrecon.io import read_result

    try:
        image = read_result(output).image
        if "--json" in arguments:
            json.loads(printed, parse_constant=_no_json)
    except Exception as error:
        return {"kind": "unreadable", "told": f"{type(error).__name__}: {error}"}
    if not {"fit", "sense-fit"} & set(arguments) and not np.isfinite(image).all():
        return {"kind": "not finite", "told": printed}
    return {"kind": "image", "told": ""}


def _no_json(name: str) -> None:
    raise ValueError(f"{name} in JSON")


def serve(sound: Path, folder: Path) -> None:
    """Orders ``[format, seed]`` on standard input, a line of JSON for each on standard output."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes where it is looked at
    faulthandler.enable()
    import typer.main

    import pyrecon.cli
    import pyrecon.models  # noqa: F401

    typer.main.get_command = functools.cache(typer.main.get_command)  # 40 ms of each command
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    for line in sys.stdin:
        name, first, stop = json.loads(line)
        for seed in range(first, stop):
            before = os.fstat(2).st_size
            found = outcome(name, seed, sound, folder)
            if os.fstat(2).st_size > before and found["kind"] in ("image", "refused"):
                found = {"kind": "printed", "told": os.pread(2, 2000, before).decode(errors="replace")}
            answers.write(json.dumps(found) + "\n")
            answers.flush()


# --- the process that watches ----------------------------------------------------------------------------------------
class Worker:
    """The process that runs the commands, and another where it hangs or dies."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._start()

    def _start(self) -> None:
        self._log = (self.place / "log").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve", str(self.place)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._fresh = True
        threading.Thread(target=self._listen, args=(self.process.stdout, self._answers), daemon=True).start()

    @staticmethod
    def _listen(stream: Any, answers: queue.SimpleQueue[str]) -> None:
        for line in stream:
            answers.put(line)
        answers.put("")

    def run(self, name: str, seeds: range) -> Iterator[tuple[int, dict[str, str]]]:
        """Seed and outcome of every file."""
        while seeds:
            process = self.process
            assert process.stdin is not None
            process.stdin.write(json.dumps([name, seeds.start, seeds.stop]) + "\n")
            process.stdin.flush()
            for seed in seeds:
                yield seed, self._answer()
                if self.process is not process:
                    break
            seeds = range(seed + 1, seeds.stop)

    def _answer(self) -> dict[str, str]:
        try:
            line = self._answers.get(timeout=10 * SECONDS if self._fresh else SECONDS)
        except queue.Empty:
            line = None
            self.process.send_signal(signal.SIGABRT)  # the stack of the hang, by faulthandler
        self._fresh = False
        if line:
            found: dict[str, str] = json.loads(line)
            return found
        code = self.process.wait()
        self._log.seek(0)
        said = self._log.read()
        told = said[max(0, said.rfind("Fatal Python error")) :][:1500]
        self._log.close()
        self._start()
        died = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        return {"kind": "hang" if line is None else died, "told": told}

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self._log.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", nargs="*", default=list(FORMATS), choices=list(FORMATS))
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first file")
    parser.add_argument("--keep", type=Path, help="folder for the files of findings")
    parser.add_argument("--log", type=Path, help="file for the outcome of every seed")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve / "sound", options.serve / "case")
        return 0
    findings = 0
    print("| format | files | image | refused | findings | ms a file |\n|---|---:|---:|---:|---:|---:|")
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # files of milliseconds
    with tempfile.TemporaryDirectory(dir=memory) as name, contextlib.ExitStack() as stack:
        place = Path(name)
        worker = Worker(place)
        stack.callback(worker.close)
        log = stack.enter_context(options.log.open("w")) if options.log else None
        for kind in options.format:
            seen: Counter[str] = Counter()
            ((_, began),) = worker.run(kind, range(-1, 0))
            if began["kind"] != "image":
                print(f"{kind}: the sound file: {began}", file=sys.stderr)
            start = time.perf_counter()
            for seed, found in worker.run(kind, range(options.first, options.first + options.count)):
                seen[found["kind"]] += 1
                if log is not None:
                    log.write(json.dumps([kind, seed, found["kind"], found["told"][:600]]) + "\n")
                    log.flush()
                if found["kind"] not in ("image", "refused"):
                    print(
                        f"{kind} {seed}: {found['kind']}: {found['told'].strip()[-1500:]}", file=sys.stderr, flush=True
                    )
                    if options.keep:
                        mutated(kind, seed, place / "kept", options.keep / f"{kind}-{seed}")
            bad = options.count - seen["image"] - seen["refused"]
            findings += bad + (began["kind"] != "image")
            each = 1e3 * (time.perf_counter() - start) / max(1, options.count)
            print(
                f"| {kind} | {options.count} | {seen['image']} | {seen['refused']} | {bad} | {each:.0f} |", flush=True
            )
    return int(findings > 0)


if __name__ == "__main__":
    sys.exit(main())
