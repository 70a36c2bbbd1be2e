"""Virtual arenas: memory follows what is used, slots fit best, and a reused slot starts unread."""

import gc
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recollect.core.arena import HostPages, SlotPool, VirtualTensor
from recollect.core.arena_cuda import CudaPages
from recollect.errors import HostError

PAGE = HostPages.page


def arena(slots=4, context=4096, row=(2, 16), dtype=torch.float32, device="cpu"):
    return VirtualTensor(slots, context, row, dtype, device)


def smaps(tensor):
    """Resident bytes of the mappings that a tensor lies in, as the kernel's smaps tells."""
    first = tensor.data.data_ptr()
    last, total, inside = first + tensor.data.numel() * tensor.data.element_size(), 0, False
    with open("/proc/self/smaps") as file:
        for line in file:
            if span := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
                low, high = (int(x, 16) for x in span.groups())
                inside = low < last and first < high
            elif inside and line.startswith("Rss:"):
                total += int(line.split()[1]) * 1024
    return total


def write(tensor, slot, tokens, value=1.0):
    tensor.back(slot, tokens)
    tensor.data[slot, :tokens] = value


def test_a_reservation_takes_no_memory():
    huge = arena(slots=64, context=1 << 20, row=(8, 128))  # 256 GiB of addresses
    assert huge.data.shape == (64, 1 << 20, 8, 128)
    assert sum(huge.mapped) == 0
    assert huge.resident(0) == 0


def test_memory_follows_the_tokens_written():
    tensor = arena()
    before = smaps(tensor)
    for tokens in (1, 31, 32, 33, 500):
        write(tensor, 2, tokens)
        live = tokens * tensor.row_bytes
        assert live <= tensor.mapped[2] < live + PAGE
        assert tensor.resident(2) == tensor.mapped[2] == smaps(tensor) - before
    tensor.discard(2, keep=33)
    assert tensor.resident(2) == tensor.mapped[2] == smaps(tensor) - before == 2 * PAGE
    assert (tensor.data[2, :33] == 1).all()
    tensor.discard(2)
    assert smaps(tensor) == before


@pytest.mark.parametrize("row", [(1, 1), (2, 16), (3, 5), (5, 80), (3, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_slots_never_share_a_page(row, dtype):
    tensor = arena(slots=3, context=100, row=row, dtype=dtype)
    assert tensor.slot_bytes % PAGE == 0
    assert tensor.data.is_contiguous()
    for slot in range(3):
        write(tensor, slot, 100, slot + 1.0)
    tensor.discard(1)
    assert (tensor.data[0, :100] == 1).all()
    assert (tensor.data[2, :100] == 3).all()
    assert (tensor.data[1, :100] == 0).all()


def test_a_discarded_slot_forgets_what_it_held():
    tensor = arena()
    write(tensor, 0, 4096, float("nan"))
    tensor.discard(0)
    assert (tensor.data[0] == 0).all()


def test_views_outlive_their_arena():
    tensor = arena()
    write(tensor, 1, 10, 7.0)
    view = tensor.data[1, :10]
    del tensor
    gc.collect()
    assert (view == 7).all()


def test_impossible_reservations_are_refused_in_words():
    with pytest.raises(HostError, match="fewer slots"):
        arena(slots=1 << 20, context=1 << 30, row=(8, 128))
    with pytest.raises(HostError, match="cpu and cuda, not on meta"):
        arena(device="meta")


class TestSlotPool:
    def test_best_fit_prefers_the_smallest_slot_that_is_warm_enough(self):
        pool = SlotPool(4)
        for slot, warmth in enumerate((0, 900, 300, 100)):
            pool.give(slot, warmth)
        assert pool.take(1, 250) == 2
        assert pool.take(1, 250) == 1
        assert pool.take(1, 250) == 3  # the warmest that is left
        assert pool.take(1, 250) == 0
        assert pool.take(1, 250) is None

    def test_batches_get_adjacent_slots(self):
        pool = SlotPool(5)
        assert pool.take(1, 10) == 0
        assert pool.take(3, 10) == 1
        assert pool.take(2, 10) is None
        pool.give(0, 10)
        assert pool.take(2, 10) is None  # 0 and 4 are free, but not neighbours
        pool.give(3, 10)
        assert pool.take(2, 10) == 3

    def test_reclaiming_takes_the_highest_slots_first(self):
        pool = SlotPool(4)
        for slot, warmth in enumerate((5, 0, 7, 9)):
            pool.give(slot, warmth)
        assert pool.take(1, 9) == 3
        assert pool.reclaimable() == [2, 0]
        pool.cool(2)
        assert pool.reclaimable() == [0]

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 100)), max_size=30), st.data())
    def test_no_slot_is_ever_given_twice(self, wishes, data):
        pool, held = SlotPool(6), []
        for count, tokens in wishes:
            if held and data.draw(st.booleans()):
                for slot in held.pop(data.draw(st.integers(0, len(held) - 1))):
                    pool.give(slot, tokens)
            first = pool.take(count, tokens)
            if first is not None:
                held.append(range(first, first + count))
            taken = [slot for run in held for slot in run]
            assert len(taken) == len(set(taken))
            assert sorted(taken + pool.free) == list(range(6))


class FakeDriver:
    """A driver that notes what is mapped, and refuses what a real one would."""

    def __init__(self, memory=100):
        self.mapped, self.ranges, self.memory, self.handles = {}, {}, memory, 0

    def granularity(self):
        return 1 << 21

    def reserve(self, nbytes):
        base = 1 << 40
        self.ranges[base] = nbytes
        return base

    def release(self, address, nbytes):
        assert self.ranges.pop(address) == nbytes
        assert not self.mapped

    def map(self, address, nbytes):
        assert nbytes == self.granularity()
        assert address % nbytes == 0
        assert address not in self.mapped
        if len(self.mapped) >= self.memory:
            raise HostError("cuMemCreate failed: out of memory")
        self.handles += 1
        self.mapped[address] = self.handles
        return self.handles

    def unmap(self, address, nbytes, handle):
        assert self.mapped.pop(address) == handle

    def synchronize(self):
        pass

    def tensor(self, addresses):
        assert addresses.address in self.mapped
        tensor = torch.empty(addresses.nbytes, dtype=torch.uint8, device="meta")
        tensor.owner = addresses
        return tensor


class TestCudaPages:
    """The bookkeeping, against a driver that checks every call."""

    def test_pages_are_mapped_once_and_given_back(self):
        driver = FakeDriver()
        page = driver.granularity()
        pages = CudaPages(10 * page - 5, torch.device("cuda"), driver)
        assert pages.data.shape == (10 * page - 5,)
        assert driver.mapped == {}
        pages.back(0, 2 * page)
        pages.back(5 * page, 6 * page)
        assert pages.resident(0, 10 * page) == 3 * page
        assert pages.resident(page, 5 * page) == page
        pages.discard(0, page)
        assert len(driver.mapped) == 2

    def test_everything_goes_with_the_last_view(self):
        driver = FakeDriver()
        pages = CudaPages(1 << 22, torch.device("cuda"), driver)
        pages.back(0, 1 << 21)
        whole = pages.data._base
        del pages
        gc.collect()
        assert driver.mapped
        del whole
        gc.collect()
        assert driver.mapped == {}
        assert driver.ranges == {}

    def test_a_full_device_leaves_things_as_they_were(self):
        driver = FakeDriver(memory=2)
        pages = CudaPages(1 << 23, torch.device("cuda"), driver)
        pages.back(0, 1 << 21)
        with pytest.raises(HostError, match="out of memory"):
            pages.back(1 << 21, 1 << 23)
        assert pages.resident(0, 1 << 23) == 1 << 21
        pages.back(1 << 21, 1 << 22)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
class TestOnTheDevice:
    def test_memory_follows_the_tokens_written(self):
        tensor = arena(slots=4, context=1 << 16, row=(8, 128), dtype=torch.float16, device="cuda")
        free, _ = torch.cuda.mem_get_info()
        write(tensor, 1, 5000, 3.0)
        torch.cuda.synchronize()
        assert tensor.mapped[1] == tensor.resident(1) == 5 * (1 << 21)
        assert free - torch.cuda.mem_get_info()[0] >= tensor.mapped[1]
        address = tensor.data.data_ptr()
        write(tensor, 1, 9000, 4.0)
        assert tensor.data.data_ptr() == address
        assert bool((tensor.data[1, :9000] == 4).all())
        tensor.discard(1)
        assert torch.cuda.mem_get_info()[0] >= free

    def test_a_graph_captured_on_a_growing_tensor_replays(self):
        tensor = arena(slots=1, context=1 << 14, row=(8, 128), dtype=torch.float16, device="cuda")
        write(tensor, 0, 100, 1.0)
        total = torch.zeros((), device="cuda")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            total.copy_(tensor.data[0, :100].float().sum())
        write(tensor, 0, 5000, 2.0)
        graph.replay()
        assert total.item() == 2.0 * 100 * 8 * 128
