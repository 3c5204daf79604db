"""A Python that a reader types snippets into: they run one after the other, in one namespace.

Reads {"name": …, "code": …} from its standard input, a line each, and answers with null or a traceback.
"""

import json
import os
import sys
import traceback


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what snippets print goes with their errors
    sys.path.insert(0, os.getcwd())
    namespace: dict[str, object] = {"__name__": "__typed__"}
    for line in sys.stdin:
        snippet = json.loads(line)
        answer = None
        try:
            exec(compile(snippet["code"], snippet["name"], "exec"), namespace)  # noqa: S102 - that is what is tested
        except BaseException:  # noqa: BLE001 - SystemExit too is an answer
            answer = traceback.format_exc()
        sys.stdout.flush()
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
