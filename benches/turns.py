"""Programs that stay alive and take turns: a line in, a line of JSON out; and what is made of their answers."""

import json
import statistics
import subprocess
import time

# Threads that wait in a loop for the next step have gone to sleep by then.
PAUSE_S = 0.2


class Contestant:
    """A program that times what it is told to."""

    def __init__(self, name, command, environment=None):
        self.name = name
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        self.about = self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with status {self.process.wait()}")
        return json.loads(line)

    def ask(self, line):
        time.sleep(PAUSE_S)
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.answer()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def median(values):
    """Of those that are; None where there are none."""
    found = [value for value in values if value is not None]
    return statistics.median(found) if found else None


def ratio(ours, theirs):
    """The median over pairs that were taken one after the other."""
    return median([mine / other for mine, other in zip(ours, theirs)])


def figure(value, form):
    return "–" if value is None else format(value, form)


def table(head, rows):
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
