"""How many threads the compiled kernel takes while other programs compute on the same cores."""

import os
import subprocess
import sys

import pytest

from fairseq_hmrnn.ops import cpu

compiled = cpu.kernel.compiled
pytestmark = pytest.mark.skipif(compiled is None, reason="the compiled kernel was not built")

SECOND = 10**9
BUSY = "while True: pass"
TRAINING = """
import sys, time, torch
from fairseq_hmrnn.modules import HMLSTM
from fairseq_hmrnn.ops.cpu.kernel import compiled
torch.manual_seed(0), torch.set_num_threads(2)
lstm, x = HMLSTM(64, [256, 256], layer_norm=True), torch.randn(50, 16, 64)

def gradient():
    lstm.zero_grad()
    sum(h.sum() for h in lstm(x).hidden).backward()
    return torch.cat([p.grad.flatten() for p in lstm.parameters()])

first = gradient()
print("ready", flush=True)
sys.stdin.readline()
wall, ran = time.time(), time.thread_time()
while time.time() < wall + 1:
    pass
if time.thread_time() - ran > 0.8:
    sys.exit("programs are not bound to cores here")
threads, end = 2, time.time() + 60
while threads > 1 and time.time() < end:
    assert torch.equal(gradient(), first)
    threads = compiled.most_threads()
assert torch.equal(gradient(), first)
print(threads)
"""


class Calls:
    """Calls of up to `size` threads that all last .1 seconds; the limit decides how many they take."""

    def __init__(self, size):
        self.limit, self.size, self.now = compiled.TeamLimit(), size, 0

    def threads(self):
        return self.limit.of(self.size, self.now)

    def run(self, running, without_core):
        """A call whose threads run on so many cores, on average, and one of which has none for that share: its
        threads."""
        threads, elapsed = self.threads(), SECOND // 10
        self.now += elapsed
        self.limit.learn(threads, elapsed, int(running * elapsed), int(without_core * elapsed), self.now)
        return threads


def test_a_quiet_machine_gives_all_threads():
    calls = Calls(4)
    assert [calls.run(3.9, 0.01) for _ in range(5)] == [4] * 5


def test_threads_that_only_wait_for_one_another_stay():
    """A call with little to do for most threads is no reason: nobody computes in their place."""
    calls = Calls(4)
    assert [calls.run(1.5, 0.01) for _ in range(5)] == [4] * 5


def test_threads_that_lose_time_but_use_their_cores_stay():
    """With 3.2 of 4 cores a team of 3 would be slower."""
    calls = Calls(4)
    assert [calls.run(3.2, 0.5) for _ in range(5)] == [4] * 5


def test_one_thread_fewer_where_cores_are_taken_until_the_rest_have_theirs():
    calls = Calls(4)
    assert calls.run(0.8, 0.9) == 4
    assert calls.run(0.9, 0.8) == 3
    assert [calls.run(1.9, 0.02) for _ in range(5)] == [2] * 5
    assert calls.limit.of(1, calls.now) == 1


def test_at_least_one_thread_runs():
    calls = Calls(2)
    calls.run(0.3, 0.9)
    assert [calls.run(0.3, 0.9) for _ in range(5)] == [1] * 5


def test_one_late_thread_in_a_short_call_does_not_decide():
    limit = compiled.TeamLimit()
    limit.learn(limit.of(2, 0), SECOND // 100, SECOND // 200, SECOND // 200, SECOND // 100)
    assert limit.of(2, SECOND // 100) == 2


def test_more_threads_are_tried_after_a_pause_and_after_a_longer_one_where_they_were_too_many():
    calls = Calls(3)
    calls.run(0.5, 0.9), calls.run(0.5, 0.9)
    calls.now += SECOND - 1
    assert calls.threads() == 1
    calls.now += 1
    assert calls.run(0.5, 0.9) == 2, "tried after a second, and too many"
    calls.now += 2 * SECOND - 1
    assert calls.threads() == 1
    calls.now += 1
    assert calls.run(1.9, 0.0) == 2, "tried after two, and the core is free"
    assert [calls.run(2.9, 0.0) for _ in range(3)] == [3] * 3, "one more at once"


def test_the_limit_goes_where_no_call_asks_for_more_or_none_has_shown_it_for_long():
    calls = Calls(2)
    none = calls.limit.most(0)
    calls.run(0.5, 0.9)
    assert calls.limit.most(calls.now) == 1
    calls.now += SECOND
    assert calls.run(1.9, 0.0) == 2
    assert calls.limit.most(calls.now) == none
    calls.run(0.5, 0.9)
    calls.size = 1  # nothing tries a larger team
    assert calls.limit.most(calls.now) == 1
    assert calls.limit.most(calls.now + 10 * SECOND) == none


def test_only_the_team_that_is_tried_tells_whether_it_is_too_large():
    calls = Calls(4)
    calls.run(0.8, 0.9)
    calls.now += SECOND
    assert calls.threads() == 4, "a trial"
    calls.size = 2
    assert [calls.run(1.9, 0.0) for _ in range(3)] == [2] * 3
    calls.size = 4
    assert calls.run(0.8, 0.9) == 4, "too many, with a pause of two seconds now"
    calls.now += 2 * SECOND - 1
    assert calls.threads() == 3


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="binds programs to cores, as Linux does")
def test_a_training_beside_other_programs_takes_fewer_threads_and_computes_the_same_bits():
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        pytest.skip("needs two cores")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "KMP_"))}

    def start(program, *bound_to, **pipes):
        bind = f"import os; os.sched_setaffinity(0, {list(bound_to)})\n"
        return subprocess.Popen([sys.executable, "-c", bind + program], text=True, env=environment, **pipes)

    programs = [start(TRAINING, *cores, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)]
    training = programs[0]
    try:
        assert training.stdout.readline() == "ready\n"
        programs += [start(BUSY, core) for core in cores]
        out, err = training.communicate("\n", timeout=200)
    finally:
        for program in programs:
            program.kill()
            program.wait()
    if "not bound" in err:
        pytest.skip(err.strip())
    assert (training.returncode, out.strip()) == (0, "1"), err
