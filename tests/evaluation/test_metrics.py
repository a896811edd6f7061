"""The metrics against matrices worked out by hand from METHOD's definitions."""

import pytest

from kaizen_dist.evaluation import metrics

# After task 1: .8. After task 2: .5 and .9. After task 3: .6, .4 and .7.
R = [
    [0.8, None, None],
    [0.5, 0.9, None],
    [0.6, 0.4, 0.7],
]


def test_final_accuracy_is_the_mean_of_the_last_row():
    assert metrics.final_accuracy(R) == pytest.approx(1.7 / 3)  # (.6 + .4 + .7) / 3


def test_accuracy_over_tasks_and_continual_accuracy():
    # .8; (.5 + .9) / 2 = .7; 1.7 / 3 = .56667
    assert metrics.accuracy_over_tasks(R) == pytest.approx([0.8, 0.7, 1.7 / 3])
    # (.8 + .7 + .566667) / 3 = 2.066667 / 3
    assert metrics.continual_accuracy(R) == pytest.approx(0.6888888889)


def test_forgetting_is_the_drop_from_the_best_before_the_last_task():
    # task 1: max(.8, .5) - .6 = .2; task 2: .9 - .4 = .5; the last has nothing to forget
    assert metrics.forgetting_per_task(R) == pytest.approx([0.2, 0.5])
    assert metrics.forgetting(R) == pytest.approx(0.35)


def test_forgetting_is_negative_where_a_task_is_known_better_at_the_end():
    # max over t < T is .4 although the last row is higher: .4 - .7
    assert metrics.forgetting([[0.4, None], [0.7, 0.5]]) == pytest.approx(-0.3)


def test_other_libraries_figures():
    """FA and CA as `accuracy` and `average_incremental_accuracy` of continuum 1.2.7, F and FT as
    `Forgetting` and `ForwardTransfer` of avalanche 0.6.0 give them for this matrix. (Tasks of equal
    size, each best when just learnt, where their definitions are the same.)"""
    matrix = [
        [0.8, None, None, None],
        [0.55, 0.9, None, None],
        [0.6, 0.4, 0.7, None],
        [0.35, 0.5, 0.45, 0.85],
    ]
    assert metrics.final_accuracy(matrix) == pytest.approx(0.5375)
    assert metrics.continual_accuracy(matrix) == pytest.approx(0.6572916666666666)
    assert metrics.forgetting_per_task(matrix) == pytest.approx([0.45, 0.4, 0.25])
    assert metrics.forgetting(matrix) == pytest.approx(0.3666666666666667)
    before, random = [None, 0.6, 0.75, 0.5], [0.4, 0.45, 0.5, 0.55]
    assert metrics.forward_transfer(before, random) == pytest.approx(0.11666666666666664)


def test_forgetting_counts_an_accuracy_measured_before_the_task_was_learnt():
    # The definition's max runs over all t < T, so over the zero-shot .6 too: (.9-.5 + .6-.4)/2
    measured = [[0.9, 0.6, 0.1], [0.7, 0.5, 0.2], [0.5, 0.4, 0.8]]
    assert metrics.forgetting(measured) == pytest.approx(0.3)


def test_columns_of_tasks_to_come_do_not_count():
    ahead = [[0.8, 0.3, 0.2], [0.5, 0.9, 0.1]]  # two of three tasks done
    assert metrics.final_accuracy(ahead) == pytest.approx(0.7)
    assert metrics.continual_accuracy(ahead) == pytest.approx(0.75)
    assert metrics.forgetting(ahead) == pytest.approx(0.3)
    assert metrics.weighted_final_accuracy(ahead, [10, 30, 60]) == pytest.approx(0.8)


def test_weighted_final_accuracy():
    # (.6 * 100 + .4 * 300 + .7 * 100) / 500 = 250 / 500
    assert metrics.weighted_final_accuracy(R, [100, 300, 100]) == pytest.approx(0.5)
    assert metrics.weighted_final_accuracy(R, [7, 7, 7]) == pytest.approx(1.7 / 3)


def test_an_unmeasured_cell_is_left_out_and_is_not_zero():
    holes = [[0.8, None, None], [None, None, None], [0.6, None, 0.7]]
    assert metrics.final_accuracy(holes) == pytest.approx(0.65)
    assert metrics.accuracy_over_tasks(holes) == [0.8, None, pytest.approx(0.65)]
    assert metrics.continual_accuracy(holes) == pytest.approx(0.725)
    assert metrics.forgetting_per_task(holes) == [pytest.approx(0.2), None]
    assert metrics.forgetting(holes) == pytest.approx(0.2)
    assert metrics.weighted_final_accuracy(holes, [10, 1000, 30]) == pytest.approx(0.675)


def test_one_task_has_no_forgetting():
    assert metrics.final_accuracy([[0.4, None]]) == 0.4
    assert metrics.continual_accuracy([[0.4, None]]) == 0.4
    assert metrics.forgetting([[0.4, None]]) is None


def test_nothing_measured_is_none():
    assert metrics.final_accuracy([]) is None
    assert metrics.weighted_final_accuracy([], []) is None
    assert metrics.continual_accuracy([]) is None
    assert metrics.forgetting([]) is None
    assert metrics.final_accuracy([[None]]) is None
    assert metrics.weighted_final_accuracy([[None]], [5]) is None


def test_zero_is_a_measurement():
    assert metrics.final_accuracy([[0.0]]) == 0.0
    assert metrics.forgetting([[0.0, None], [0.0, 0.6]]) == 0.0


def test_forward_transfer_leaves_out_the_first_task():
    # (.6 - .5) + (.9 - .5) = .5, over two tasks; task 1's .99 does not count
    assert metrics.forward_transfer([0.99, 0.6, 0.9], [0.1, 0.5, 0.5]) == pytest.approx(0.25)
    # may be negative
    assert metrics.forward_transfer([None, 0.3], [None, 0.5]) == pytest.approx(-0.2)


def test_forward_transfer_unmeasured():
    assert metrics.forward_transfer([], []) is None
    assert metrics.forward_transfer([0.9], [0.1]) is None
    assert metrics.forward_transfer([None, None], [0.1, 0.1]) is None
    assert metrics.forward_transfer([0.5, 0.5, None], [0.1, 0.1, 0.1]) == pytest.approx(0.4)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="row 1"):
        metrics.final_accuracy([[0.5], [0.5]])
    with pytest.raises(ValueError, match="only 1 a size"):
        metrics.weighted_final_accuracy([[0.5, None], [0.5, 0.5]], [3])
    with pytest.raises(ValueError, match="2 before, 1 random"):
        metrics.forward_transfer([0.1, 0.2], [0.1])
