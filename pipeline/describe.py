"""The teachers of a configuration, as tasks: who they are, and at which grids they speak."""

from infra.terminal import Terminal
from pipeline.job import TeacherTask
from pipeline.teachers import load_teacher
from schemas.errors import ConfigError
from schemas.extract_config import ExtractConfig


def describe_teachers(config: ExtractConfig, terminal: Terminal) -> tuple[TeacherTask, ...]:
    """Load each teacher once, on the CPU, for its fingerprint, and say what it is.

    Raises:
        ConfigError: two of them are the same, or what should be a model folder is none.
        TeacherError: one cannot be loaded, or cannot see pictures of a size that is asked for.
        DamageError: a model folder is damaged.
    """
    tasks = []
    for name in config.teachers_now:
        teacher = config.teachers[name]
        if teacher.weights.startswith("random:"):
            terminal.warn(f"teacher {name} has random weights: its features mean nothing")
        loaded = load_teacher(teacher, config.workers.precision, "cpu")
        record = loaded.record
        for grid in config.grids_of(name):
            loaded.encoder.refuse_other_size(record.pixels(grid))
        task = TeacherTask(name, teacher, config.workers.precision, record, config.grids_of(name))
        tasks.append(task)
        terminal.say(
            f"teacher      {name}  {record.fingerprint12}  {record.library} {record.model}: patch "
            f"{record.patch_pixels} px, tokens {record.patch_width}, "
            + (f"CLS {record.cls_width} ({record.cls_kind})" if record.cls_width else "no CLS")
            + f", made for {record.native_pixels} px, sees "
            + ", ".join(f"{record.pixels(grid)} px (grid {grid})" for grid in task.grids)
        )
    by_fingerprint = {task.record.fingerprint: task.name for task in tasks}
    for task in tasks:
        if by_fingerprint[task.record.fingerprint] != task.name:
            raise ConfigError(
                f"teachers {task.name} and {by_fingerprint[task.record.fingerprint]} are the same "
                "model with the same weights; name it once"
            )
    return tuple(tasks)
