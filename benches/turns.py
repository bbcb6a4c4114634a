"""Programs that stay alive and take turns: a line in, a line of JSON out; and what is made of their answers."""

import contextlib
import json
import os
import statistics
import subprocess
import time
from pathlib import Path

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


class Company:
    """How much of the processors others used meanwhile: what makes a run one to repeat."""

    def __init__(self, players):
        self.players = players
        self.before = self.now()

    def now(self):
        """Seconds on the clock, of all processes, and of those that take part."""
        with contextlib.suppress(OSError):
            user, nice, system, _, _, interrupts, soft, stolen, *_ = map(
                int, Path("/proc/stat").read_text().splitlines()[0].split()[1:])
            own = 0
            for player in self.players:
                fields = Path(f"/proc/{player.process.pid}/stat").read_text().rpartition(")")[2].split()
                own += int(fields[11]) + int(fields[12])
            tick = os.sysconf("SC_CLK_TCK")
            return time.perf_counter(), (user + nice + system + interrupts + soft + stolen) / tick, own / tick
        return None

    def share(self):
        """Of all processors since the start; None where the system does not say."""
        after = self.now()
        if self.before is None or after is None:
            return None
        wall, busy, own = (end - begin for begin, end in zip(self.before, after))
        return max(0.0, (busy - own) / (wall * os.cpu_count()))


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
