"""Candidates of a build: generated or found, chunk by chunk, never made twice.

While a chunk is being generated, a journal names its finished clips, so that a resumed build makes
only the others.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ft2.errors import RunError, UsageError
from ft2.files import read_lines
from ft2.nsq.protocols import Generator
from ft2.pairs import Condition
from ft2.runs import Interrupts


@dataclass(frozen=True)
class Candidate:
    """A clip that a build may use: its file exists, or is missing and will be dropped."""

    condition: Condition
    model: str
    seed: int
    video: Path


Folder = Mapping[str, Sequence[Candidate]]
"""Clips that other models made, by condition."""


def read_folder(manifest: Path, conditions: Mapping[str, Condition]) -> Folder:
    """Return the clips of a manifest: JSON lines with file, condition_id, model and seed.

    Files are relative to the manifest. A file that is missing stays: it is counted as a failure.

    Raises:
        UsageError: no manifest, a broken line, an unknown condition, or a clip that is there twice.
    """
    if not manifest.is_file():
        raise UsageError(
            f"no manifest {manifest}",
            'write one object a line: {"file", "condition_id", "model", "seed"}',
        )
    found: dict[str, list[Candidate]] = {}
    problems = []
    seen: set[tuple[str, str, int]] = set()
    for number, line in enumerate(read_lines(manifest), start=1):
        if not line.strip():
            continue
        try:
            candidate = _candidate(json.loads(line), manifest.parent, conditions)
            key = (candidate.condition.condition_id, candidate.model, candidate.seed)
            if key in seen:
                raise ValueError(f"condition {key[0]!r}, model {key[1]!r}, seed {key[2]} is twice")
            seen.add(key)
            found.setdefault(candidate.condition.condition_id, []).append(candidate)
        except (ValueError, TypeError) as error:
            problems.append(f"{manifest}:{number}: {error}")
    if problems or not found:
        raise UsageError(
            "\n".join(problems[:20]) or f"{manifest} has no clips",
            "each line needs file, condition_id, model and seed",
        )
    return found


def _candidate(row: object, root: Path, conditions: Mapping[str, Condition]) -> Candidate:
    names = {"file": str, "condition_id": str, "model": str, "seed": int}
    if not isinstance(row, dict) or set(row) != set(names):
        raise ValueError(f"wrong fields: {sorted(row) if isinstance(row, dict) else row!r}")
    for name, kind in names.items():
        if type(row[name]) is not kind or row[name] == "":
            raise ValueError(f"{name} is {row[name]!r}, not {kind.__name__}")
    if row["condition_id"] not in conditions:
        raise ValueError(f"unknown condition_id {row['condition_id']!r}")
    condition = conditions[row["condition_id"]]
    return Candidate(condition, row["model"], row["seed"], root / row["file"])


class Maker:
    """Gives the candidates of a chunk: those of folders, and those that generators make."""

    def __init__(
        self,
        generators: Sequence[Generator],
        seeds: Sequence[int],
        folders: Sequence[Folder],
        output: Path,
    ) -> None:
        """Keep where clips come from.

        Args:
            generators: Policies; each makes every condition with every seed.
            seeds: Seeds of the generators.
            folders: Clips that are there already.
            output: Build directory; clips are made below its `candidates`.
        """
        self.generators, self.seeds, self.folders = generators, seeds, folders
        self.output = output

    def per_condition(self, condition_id: str) -> int:
        """Return how many candidates a condition has."""
        given = sum(len(folder.get(condition_id, ())) for folder in self.folders)
        return given + len(self.generators) * len(self.seeds)

    def make(
        self, chunk: Sequence[Condition], journal: Path, interrupts: Interrupts, hint: str
    ) -> list[Candidate]:
        """Return the candidates of a chunk, sorted by condition, then source, model and seed.

        Raises:
            RunError: a generator left out a clip, or gave one nobody asked for.
            Interrupted: a signal came; the journal keeps what is finished.
        """
        made = _read_journal(journal, self.output)
        journal.parent.mkdir(parents=True, exist_ok=True)
        for number, generator in enumerate(self.generators):
            folder = "candidates" if len(self.generators) == 1 else f"candidates/{number:02d}"
            mine = {(c, s): v for (n, c, s), v in made.items() if n == number}
            with journal.open("a", encoding="utf-8") as file:
                for conditions, seeds in _calls(chunk, self.seeds, set(mine)):
                    for clip in generator.generate(conditions, seeds, self.output / folder):
                        video = clip.video.relative_to(self.output).as_posix()
                        made[number, clip.condition_id, clip.seed] = video
                        line = [number, clip.condition_id, clip.seed, video]
                        file.write(json.dumps(line) + "\n")
                        file.flush()
                        interrupts.check(hint)
        numbers = range(len(self.generators))
        wanted = {(n, c.condition_id, s) for n in numbers for c in chunk for s in self.seeds}
        if set(made) != wanted:
            missing, extra = wanted - set(made), set(made) - wanted
            raise RunError(
                f"the generator left out {len(missing)} clips and gave {len(extra)} unknown ones",
                f"first: {sorted(missing or extra)[0][1:]}",
            )
        found = []
        for c in chunk:
            for folder_clips in self.folders:
                found += sorted(
                    folder_clips.get(c.condition_id, ()), key=lambda x: (x.model, x.seed)
                )
            for number, generator in enumerate(self.generators):
                for seed in self.seeds:
                    path = self.output / made[number, c.condition_id, seed]
                    found.append(Candidate(c, generator.name, seed, path))
        return found


def _calls(
    chunk: Sequence[Condition], seeds: Sequence[int], made: set[tuple[str, int]]
) -> list[tuple[list[Condition], list[int]]]:
    """Return what to ask a generator for: untouched conditions together, begun ones alone."""
    untouched = [c for c in chunk if not any((c.condition_id, s) in made for s in seeds)]
    calls = [(untouched, list(seeds))] if untouched else []
    for condition in chunk:
        left = [seed for seed in seeds if (condition.condition_id, seed) not in made]
        if condition not in untouched and left:
            calls.append(([condition], left))
    return calls


def _read_journal(journal: Path, output: Path) -> dict[tuple[int, str, int], str]:
    """Return the finished clips of an interrupted chunk; a line that a kill cut is skipped."""
    made = {}
    lines = read_lines(journal) if journal.exists() else []
    for line in lines:
        try:
            number, condition, seed, video = json.loads(line)
        except ValueError:
            continue
        if (output / video).is_file():
            made[int(number), str(condition), int(seed)] = str(video)
    return made
