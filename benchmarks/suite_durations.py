"""Where the tests' minutes go: by file and by test, of a run's JUnit report.

OMP_NUM_THREADS=1 pytest -n 2 --dist loadfile --junitxml=tests.xml
python benchmarks/suite_durations.py tests.xml --out benchmarks/results/suite_durations.json
"""

from __future__ import annotations

import argparse
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import Any

from measuring import provenance
from measuring import report as write_report


def durations(report: Path) -> dict[str, Any]:
    """Seconds of a JUnit report: the whole run's, of each file, and of the forty slowest tests."""
    (suite,) = ET.parse(report).getroot().iter("testsuite")
    files: Counter[str] = Counter()
    tests: Counter[str] = Counter()
    for case in suite.iter("testcase"):
        file = "/".join(part for part in case.attrib["classname"].split(".") if not part.startswith("Test")) + ".py"
        files[file] += float(case.attrib["time"])
        tests[f"{file}::{case.attrib['name']}"] += float(case.attrib["time"])
    outcomes = {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}
    return {
        **outcomes,
        "wall_s": round(float(suite.attrib["time"]), 1),
        "files_s": {name: round(seconds, 1) for name, seconds in files.most_common()},
        "slowest_s": {name: round(seconds, 1) for name, seconds in tests.most_common(40)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="what pytest wrote with --junitxml")
    parser.add_argument("--out", type=Path, help="where to write the figures as JSON")
    args = parser.parse_args()
    result = durations(args.report)
    print(f"{result['tests']} tests in {result['wall_s']:.0f} s; {sum(result['files_s'].values()):.0f} s in all.")
    for title in ("files_s", "slowest_s"):
        print(f"\n{title.removesuffix('_s')}, seconds")
        for name, seconds in list(result[title].items())[:20]:
            print(f"{seconds:8.1f}  {name}")
    if args.out is not None:
        write_report({**provenance(), **result}, args.out)


if __name__ == "__main__":
    main()
