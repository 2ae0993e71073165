"""What a benchmark generates, and where: slots with as many duplicates as real annotations have, and a folder.
Knows prompts; nothing of how images are made of them."""

import contextlib
import dataclasses
import itertools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from jobs.benchmarks.options import Speed
from ray_app.annotations import circo
from ray_app.errors import InputRefused, one_line

DUPLICATES = 0.05
"""Share of the slots that duplicate another slot: CIRCO's test set has 199 of 4,000."""
PROMPTS_A_QUERY = 5
SEED = 0

_COLOURS = ("red", "blue", "green", "yellow", "white", "black", "brown")
_THINGS = ("dog", "bicycle", "boat", "train", "kite", "umbrella", "chair", "horse", "cup", "clock", "bear")
_PLACES = ("on a beach", "in a kitchen", "by a lake", "on a street at night", "in the snow")


@dataclasses.dataclass(frozen=True)
class Work:
    """Slots to generate: number, prompt and seed of each."""

    slots: list[tuple[int, str, int]]
    steps: list[int]

    @property
    def different(self) -> list[tuple[int, str, int]]:
        """The first slot of each prompt: what has to be denoised."""
        first: dict[str, tuple[int, str, int]] = {}
        for slot in self.slots:
            first.setdefault(slot[1], slot)
        return list(first.values())

    @property
    def images(self) -> int:
        """Requested images, whichever variant generates them."""
        return len(self.slots) * len(self.steps)

    def write(self, file: Path, prompt_field: str) -> None:
        """As annotations, one query per slot, so that slot i's image is `combined_{i}_0`."""
        entries = [{"id": i, "reference_img_id": i, prompt_field: [prompt]} for i, prompt, _ in self.slots]
        file.write_text(json.dumps(entries))


def choose(options: Speed) -> Work:
    """The slots that these options mean.

    Raises:
        Refused: annotations that can't be read, or have fewer prompts than requested.
    """
    prompts = _real(options, options.json_file) if options.json_file else made_up(options.prompts)
    return Work([(number, prompt, SEED) for number, prompt in enumerate(prompts)], options.steps())


def made_up(count: int) -> list[str]:
    """Prompts of which `DUPLICATES` repeat an earlier one, evenly spread; always the same."""
    repeats = round(count * DUPLICATES)
    places = {(number + 1) * count // repeats - 1 for number in range(repeats)} if repeats else set()
    prompts: list[str] = []
    for number in range(count):
        colour, thing, place = (words[number % len(words)] for words in (_COLOURS, _THINGS, _PLACES))
        repeated = number in places and number
        prompts.append(prompts[number // 2] if repeated else f"a {colour} {thing} {place}, photo {number}")
    return prompts


@contextlib.contextmanager
def working_folder(named: str | None) -> Iterator[tuple[Path, bool]]:
    """A folder for what is generated, and whether it stays.

    Raises:
        Refused: the folder that `--work_dir` names is not empty, or can't be written.
    """
    if named is None:
        with tempfile.TemporaryDirectory(prefix="proxyqueue_bench_") as folder:
            yield Path(folder), False
        return
    folder = Path(named).expanduser().resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise InputRefused(f"--work_dir {folder}: is not empty")
    except OSError as error:
        raise InputRefused(f"--work_dir {folder}: can't be written: {error.strerror or one_line(error)}") from error
    yield folder, True


def _real(options: Speed, file: str) -> list[str]:
    queries = circo.load(file, options.prompt_field, PROMPTS_A_QUERY).queries()
    all_prompts = itertools.chain.from_iterable(query.prompts for query in queries)
    prompts = list(itertools.islice(all_prompts, options.prompts))
    if len(prompts) < options.prompts:
        raise InputRefused(f"--prompts {options.prompts}: {file} has only {len(prompts)}")
    return prompts
