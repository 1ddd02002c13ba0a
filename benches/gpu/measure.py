"""How it is measured: providers take turns, the logits are restored and the cache is flushed outside of what is timed.

A call is one forward and one backward pass, timed between CUDA events (between readings of a clock on the CPU). In a
round every provider makes some calls in a row; rounds are repeated, and the 10th, 50th and 90th percentile of all calls
of a provider are given, with the medians of the rounds beside them.
"""

import contextlib
import gc
import time
from statistics import median

import numpy as np
import torch

ROUNDS, LEAST_CALLS, MOST_CALLS, SECONDS = 3, 3, 15, 0.5
FLUSH = 2**28  # bytes that are written between two calls: several times any L2


class Budget:
    """The time that there is.

    Parameters
    ----------
    seconds : float
        From now on.
    clock : callable
        Of seconds.
    """

    def __init__(self, seconds, clock=time.monotonic):
        self.clock, self.start, self.seconds = clock, clock(), seconds

    def spent(self):
        """Seconds since the start."""
        return self.clock() - self.start

    def has(self, seconds):
        """Whether so many seconds are left."""
        return self.seconds - self.spent() >= seconds


class Bench:
    """Times calls on a device."""

    def __init__(self, device, budget):
        self.device, self.budget, self.cuda = torch.device(device), budget, torch.device(device).type == "cuda"
        self._flush = torch.empty(FLUSH if self.cuda else 0, dtype=torch.uint8, device=device)

    def wait(self):
        """Until the device is done."""
        if self.cuda:
            torch.cuda.synchronize()

    def once(self, call, data):
        """Milliseconds of the forward pass, the backward pass and both, once the device is done.

        The host prepares the pass while the device still restores the logits, so that what it needs for that is hidden,
        as it is behind a model's own work, as far as it is no longer than that.
        """
        data.restore()
        self._flush.zero_()
        marks = [self._mark()]
        loss = call.forward()
        marks.append(self._mark())
        gradients = call.backward(loss)
        marks.append(self._mark())
        del loss, gradients
        self.wait()
        return [self._between(marks[a], marks[b]) for a, b in ((0, 1), (1, 2), (0, 2))]

    def _mark(self):
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, a, b):
        return a.elapsed_time(b) if self.cuda else 1e3 * (b - a)

    def first(self, call, data):
        """Milliseconds on the wall of a first call, with all that it compiles."""
        data.restore()
        self.wait()
        start = time.perf_counter()
        gradients = call.backward(call.forward())
        self.wait()
        del gradients
        return 1e3 * (time.perf_counter() - start)

    def rounds(self, calls, data, failed):
        """Times the calls in turn.

        Parameters
        ----------
        calls : dict of Call
            By name, each called before.
        data : Data or LinearData
            What they are of.
        failed : callable
            Is told the name and what was raised of a call that is given up.

        Returns
        -------
        dict
            By name: ``forward``, ``backward`` and ``total``, each with ``quantiles`` (10, 50, 90 %) in milliseconds and
            the ``rounds``' medians, and the number of ``calls``. What failed, or was not reached, is missing.
        """
        taken = {name: [] for name in calls}
        gc.disable()
        try:
            # The first round warms up.
            for number in range(ROUNDS + 1 if self.cuda else 2):
                for name in list(taken):
                    if not self.budget.has(0):
                        break
                    try:
                        samples = self._burst(calls[name], data, 1 if number == 0 else MOST_CALLS)
                    except Exception as problem:  # noqa: BLE001
                        del taken[name]
                        failed(name, problem)
                        continue
                    if number:
                        taken[name].append(samples)
        finally:
            gc.enable()
        return {name: _statistics(rounds) for name, rounds in taken.items() if rounds}

    def _burst(self, call, data, most):
        """Some calls in a row: half a second of them, or `most`."""
        samples, end = [self.once(call, data)], time.perf_counter() + SECONDS
        while len(samples) < most and self.cuda and (time.perf_counter() < end or len(samples) < LEAST_CALLS):
            samples.append(self.once(call, data))
        return samples

    def memory(self, call, data):
        """MiB at the peak over what was there before, the gradient included where it is not in place."""
        if not self.cuda:
            return None
        data.restore()
        self.wait()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        gradients = call.backward(call.forward())
        self.wait()
        del gradients
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def launches(self, call, data):
        """How many kernels a call starts, as torch's profiler sees them; None where it sees none."""
        if not self.cuda:
            return None
        data.restore()
        self.wait()
        kinds = torch.profiler.ProfilerActivity
        try:
            with torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA]) as profile:
                gradients = call.backward(call.forward())
                self.wait()
        except RuntimeError:
            return None
        del gradients
        on_device = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
        kernels = [e for e in on_device if not e.name.startswith(("Memcpy", "Memset", "##", "ProfilerStep"))]
        return len(kernels) or None

    def repeated(self, function, times=20):
        """Median milliseconds of a function, with the cache flushed before each."""
        function()
        samples = []
        for _ in range(times):
            self._flush.zero_()
            start = self._mark()
            function()
            end = self._mark()
            self.wait()
            samples.append(self._between(start, end))
        return median(samples)


def _statistics(rounds):
    samples = np.array([sample for each in rounds for sample in each])
    found = {"calls": len(samples)}
    for i, name in enumerate(("forward", "backward", "total")):
        quantiles = np.quantile(samples[:, i], [0.1, 0.5, 0.9]).tolist()
        found[name] = {"quantiles": quantiles, "rounds": [float(np.median(np.array(each)[:, i])) for each in rounds]}
    return found


def ceilings(bench, size=2**31, side=8192):
    """Of this device: the bandwidth of a copy and of a read, GB/s, and of a bf16 matrix product, TFLOP/s."""
    rows, found = torch.empty(2, size, dtype=torch.bfloat16, device=bench.device).normal_(), {}
    moved = size * rows.element_size()
    found["copy_gbs"] = 2 * moved / bench.repeated(lambda: rows[1].copy_(rows[0])) / 1e6
    found["read_gbs"] = moved / bench.repeated(rows[0].amax) / 1e6
    x, y = torch.randn(2, side, side, device=bench.device).bfloat16()
    found["matmul_tflops"] = 2 * side**3 / bench.repeated(lambda: x @ y) / 1e9
    return found


@contextlib.contextmanager
def freed(device):
    """Gives the allocator's memory back afterwards, so that the next case has all of it."""
    try:
        yield
    finally:
        gc.collect()
        if torch.device(device).type == "cuda":
            torch.cuda.empty_cache()
