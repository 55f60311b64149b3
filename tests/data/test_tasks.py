"""The six tasks and what a record of each must hold."""

from __future__ import annotations

import pytest

from unialign_jax.data.tasks import TRAINING_TASKS, BadItem, Record, Task, Turn


def test_there_are_six_tasks_with_the_house_words():
    assert [str(task) for task in Task] == [
        "generate",
        "caption",
        "answer",
        "edit",
        "perceive",
        "compose",
    ]


def test_caption_is_trained_through_generate():
    assert Task.CAPTION not in TRAINING_TASKS
    assert TRAINING_TASKS[Task.GENERATE].text == "caption"


def test_only_perceive_captions_its_condition_and_only_answer_has_no_image_branch():
    clean = {task: plan.clean_image for task, plan in TRAINING_TASKS.items()}
    assert {task for task, image in clean.items() if image == "condition"} == {Task.PERCEIVE}
    assert [task for task, plan in TRAINING_TASKS.items() if not plan.image_branch] == [Task.ANSWER]


@pytest.mark.parametrize("task", TRAINING_TASKS)
def test_a_complete_record_of_every_training_task_is_valid(make_record, task):
    record = make_record(task)
    assert record.validate() is record


def test_a_record_without_caption_is_valid(make_record):
    make_record(Task.GENERATE, captions=()).validate()
    make_record(Task.EDIT, captions=()).validate()


@pytest.mark.parametrize(
    ("task", "changes", "said"),
    [
        (Task.CAPTION, {}, "generate"),
        (Task.GENERATE, {"conditions": (b"x",)}, "1 condition images, it takes 0"),
        (Task.GENERATE, {"target": b""}, "target image is empty"),
        (Task.GENERATE, {"height": 0}, "size 0x26"),
        (Task.GENERATE, {"turns": (Turn("a", True),)}, "turns"),
        (Task.EDIT, {"conditions": ()}, "0 condition images, it takes 1"),
        (Task.EDIT, {"conditions": (b"",)}, "condition image is empty"),
        (Task.EDIT, {"instruction": "  "}, "instruction is empty"),
        (Task.COMPOSE, {"conditions": (b"x",) * 4}, "it takes 1 to 3"),
        (Task.ANSWER, {"turns": (Turn("q", False),)}, "no answer"),
        (Task.ANSWER, {"turns": (Turn("", True),)}, "no answer"),
    ],
)
def test_a_record_that_does_not_fit_its_task_is_refused_with_the_reason(
    make_record, task, changes, said
):
    base = make_record(Task.GENERATE if task is Task.CAPTION else task)
    fields = {**vars(base), "task": task, **changes}
    with pytest.raises(BadItem, match="record") as caught:
        Record(**fields).validate()
    assert said in caught.value.reason
    assert caught.value.kind == "record"
