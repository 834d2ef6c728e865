"""The block with one thread: for which weights, and that the number is as before."""

import threading

import pytest
import torch

from tensorpress.utils.one_thread import MOST_VALUES, one_thread


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def number(weight: torch.Tensor) -> int:
    with one_thread(weight):
        return torch.get_num_threads()


def test_weights_up_to_a_size_have_one_thread() -> None:
    assert number(torch.ones(3, 3)) == number(torch.ones(MOST_VALUES)) == 1
    assert number(torch.ones(1).expand(MOST_VALUES + 1)) == 2
    assert number(torch.empty(3, device="meta")) == 2
    assert torch.get_num_threads() == 2


def test_the_number_is_as_before_after_an_error_and_nested_blocks() -> None:
    weight = torch.ones(3)
    with pytest.raises(KeyboardInterrupt), one_thread(weight), one_thread(weight):
        raise KeyboardInterrupt
    assert torch.get_num_threads() == 2


def test_other_threads_are_left_as_they_are() -> None:
    numbers = []
    thread = threading.Thread(target=lambda: numbers.append(number(torch.ones(3))))
    thread.start()
    thread.join()
    assert numbers == [2]
    assert torch.get_num_threads() == 2
