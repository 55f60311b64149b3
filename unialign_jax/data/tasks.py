"""The six tasks, what each training task reads from a record, and the record itself."""

from __future__ import annotations

import dataclasses
import enum

SCHEMA_VERSION = 1
MAX_CONDITIONS = 3


class Task(enum.StrEnum):
    """What the model is asked to do; the same words in records, commands, Python and scores."""

    GENERATE = "generate"
    CAPTION = "caption"
    ANSWER = "answer"
    EDIT = "edit"
    PERCEIVE = "perceive"
    COMPOSE = "compose"


@dataclasses.dataclass(frozen=True)
class TrainingTask:
    """Which parts of a record go where in a training step.

    Attributes:
        image_branch: whether the step has an image branch (a noisy `target`).
        conditions: smallest and largest number of condition images beside the target.
        prompt: the clean text of the image branch: "caption", "instruction" or None.
        clean_image: the image that the text branch sees: "target" or "condition".
        text: what the text branch masks: "caption" or the answers among the "turns".
    """

    image_branch: bool
    conditions: tuple[int, int]
    prompt: str | None
    clean_image: str
    text: str


# `caption` is not trained by itself: a `generate` step masks the caption in its text branch.
TRAINING_TASKS: dict[Task, TrainingTask] = {
    Task.GENERATE: TrainingTask(True, (0, 0), "caption", "target", "caption"),
    Task.EDIT: TrainingTask(True, (1, 1), "instruction", "target", "caption"),
    Task.PERCEIVE: TrainingTask(True, (1, 1), "instruction", "condition", "caption"),
    Task.COMPOSE: TrainingTask(True, (1, MAX_CONDITIONS), "instruction", "target", "caption"),
    Task.ANSWER: TrainingTask(False, (0, 0), None, "target", "turns"),
}


class BadItem(ValueError):
    """One item of a source or data set that cannot be used; the job counts it and goes on.

    Attributes:
        kind: a short word to count by (for example "missing_image").
        reason: one sentence for the log.
    """

    def __init__(self, kind: str, reason: str):
        super().__init__(kind, reason)
        self.kind = kind
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class Turn:
    """A piece of a conversation; `is_answer` marks what the model learns to say."""

    text: str
    is_answer: bool


@dataclasses.dataclass(frozen=True)
class Record:
    """One training example as it is stored. Images stay encoded (PNG or JPEG bytes).

    Attributes:
        id: a name that is unique enough to find the item in its source.
        task: a training task (see `TRAINING_TASKS`).
        target: the image to generate; for `answer` the image that is asked about.
        conditions: 0 to 3 images that go in beside the target.
        instruction: the text that asks for the target ("" where there is none).
        captions: descriptions of the target (for `perceive`: of the condition); may be empty.
        turns: question and answer pieces in order (`answer` only).
        map_kind: what a `perceive` target shows ("depth", "canny", ...); else "".
        height, width: of the stored target, in pixels.
    """

    id: str
    task: Task
    target: bytes
    height: int
    width: int
    conditions: tuple[bytes, ...] = ()
    instruction: str = ""
    captions: tuple[str, ...] = ()
    turns: tuple[Turn, ...] = ()
    map_kind: str = ""
    schema_version: int = SCHEMA_VERSION

    def validate(self) -> Record:
        """Returns the record itself.

        Raises:
            BadItem: kind "record", when the fields do not fit the task.
        """

        def require(good: bool, what: str) -> None:
            if not good:
                raise BadItem("record", f"record {self.id!r} ({self.task}): {what}")

        require(self.task in TRAINING_TASKS, "not a training task; captions train with `generate`")
        plan = TRAINING_TASKS[self.task]
        least, most = plan.conditions
        count = len(self.conditions)
        wanted = f"{least}" if least == most else f"{least} to {most}"
        require(least <= count <= most, f"{count} condition images, it takes {wanted}")
        require(bool(self.target), "the target image is empty")
        require(all(self.conditions), "a condition image is empty")
        require(self.height > 0 and self.width > 0, f"size {self.height}x{self.width}")
        if plan.prompt == "instruction":
            require(bool(self.instruction.strip()), "the instruction is empty")
        if plan.text == "turns":
            answers = [turn.text for turn in self.turns if turn.is_answer]
            require(bool(answers) and all(answers), "no answer among the turns")
        else:
            require(not self.turns, "turns belong to `answer` only")
        return self
