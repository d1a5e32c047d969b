"""The time that a training still takes."""

from __future__ import annotations

from ignite.engine import Engine, Events

from boltzformer_monai.engines.remaining import RemainingTime


def _run(*, start: int = 0) -> list[str]:
    """5 steps an epoch, 4 epochs, 30 s a step and 30 s a validation after every epoch."""
    now = [100.0]
    remaining = RemainingTime(lambda: now[0])
    texts: list[str] = []

    def step(*_: object) -> None:
        now[0] += 30

    trainer = Engine(step)
    remaining.attach(trainer)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: texts.append(remaining.text(engine)))
    trainer.add_event_handler(Events.EPOCH_COMPLETED, step)
    trainer.state.iteration, trainer.state.epoch = start, start // 5
    texts.append(remaining.text(trainer))
    trainer.state.max_epochs, trainer.state.epoch_length = 4, 5
    trainer.run([0] * 5, max_epochs=4, epoch_length=5)
    return texts


def test_of_all_epochs_with_their_validations() -> None:
    texts = _run()
    assert texts[:2] == ["?", "0:09:30"]
    assert texts[6] == "0:08:10"  # 6 steps took 210 s, so 14 take 490
    assert texts[-1] == "0:00:00"


def test_a_training_that_goes_on_counts_its_own_steps() -> None:
    assert _run(start=10)[1] == "0:04:30"
