"""Print the configuration's JSON Schema or its reference page: python -m jobs.config --schema | --reference"""

from __future__ import annotations

import json
from collections.abc import Sequence

from jobs.cli import command_parser, run
from jobs.config.reference import json_schema, reference


def main(arguments: Sequence[str]) -> None:
    parser = command_parser("config", __doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--schema", action="store_true", help="the JSON Schema, for editors")
    which.add_argument("--reference", action="store_true", help="all keys, in Markdown")
    options = parser.parse_args(arguments)
    print(json.dumps(json_schema(), indent=1) if options.schema else reference(), end="\n" if options.schema else "")


if __name__ == "__main__":
    run(main)
