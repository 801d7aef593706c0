"""`zweave expert compress`: stores many LoRAs as coefficients over a common basis."""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..adapters.compression.compress import compress
from ..adapters.compression.compressed_file import save_compressed
from ..adapters.peft_directory import read_peft
from ..checkpoint.checkpoint import resolve_model
from ..errors import ZweaveError
from ..experts.mixture import check_name
from ..io.progress import progress_bar
from .compressed_table import print_compressed


def run(args: argparse.Namespace) -> int:
    directories = dict(_named(args.adapters))
    checkpoint = resolve_model(args.model)
    loras = {name: read_peft(directory) for name, directory in directories.items()}
    with progress_bar() as report:
        compressed = compress(
            loras,
            checkpoint.adapted_shapes(),
            rank=args.rank,
            variant=args.variant,
            clusters=args.clusters,
            seed=args.seed,
            base_digest=checkpoint.digest(),
            report=report,
        )
    save_compressed(compressed, args.output)
    print_compressed(compressed, args.output, args.json)
    return 0


def _named(adapters: Sequence[str]) -> Iterator[tuple[str, Path]]:
    """Names and directories; ZweaveError if a name cannot be one, or is there twice."""
    seen = set()
    for text in adapters:
        name, separator, path = text.partition("=")
        if not separator or Path(text).exists():
            name, path = Path(text).resolve().name, text
        try:
            check_name(name)
            if name in seen:
                raise ZweaveError(f"two adapters are called {name!r}")
        except ZweaveError as error:
            raise ZweaveError(f"{path}: {error}: NAME={path} calls it otherwise") from None
        seen.add(name)
        yield name, Path(path)
