from zweave.scheduler.step_plan import StepPlan


class Pending:
    """A sequence of which only the number of pending tokens counts."""

    def __init__(self, count: int) -> None:
        self.num_pending_tokens = count


def test_the_budget_is_spent_in_order_and_returned_by_a_preemption() -> None:
    plan = StepPlan(max_tokens=10)
    first, second, third = Pending(3), Pending(20), Pending(1)
    for sequence in (first, second):
        plan.add(sequence, plan.count_for(sequence))
    assert list(plan) == [(first, 3), (second, 7)]
    assert (plan.num_free_tokens, plan.count_for(third)) == (0, 0)
    plan.drop(third)
    plan.drop(second)
    assert list(plan) == [(first, 3)]
    assert (plan.num_free_tokens, plan.count_for(third)) == (7, 1)
