"""Every error of grpokit, in one table: what was given, what was expected, what to do.

An error has a `kind`, a key of `KINDS`, and the numbers and names that its sentence is made of. The Rust core
and Python raise the same kinds through `error`, and a test walks the table and provokes each of them.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class GrpokitError(Exception):
    """The base of all errors that grpokit raises on purpose.

    Attributes
    ----------
    kind : str
        The key into `KINDS`.
    context : dict
        What the message was made of.
    """

    def __init__(self, kind: str, /, **context: object) -> None:
        self.kind = kind
        self.context = context
        super().__init__(KINDS[kind].template.format(**context))

    def __reduce__(self) -> tuple[object, ...]:
        return _restore, (self.kind, self.context)

    def __str__(self) -> str:
        return str(self.args[0])


class InputError(GrpokitError, ValueError):
    """A value that cannot be meant."""


class InputTypeError(GrpokitError, TypeError):
    """An argument of a type that is not understood."""


class FileError(GrpokitError, OSError):
    """A file that cannot be read or must not be written."""


class StateError(GrpokitError, RuntimeError):
    """Calls in an order that cannot work."""


class GroupWarning(UserWarning):
    """The groups cannot be what was meant, and the numbers that come out are useless."""


@dataclass(frozen=True)
class Kind:
    """One row of the table: the exception class and the sentence."""

    cls: type[GrpokitError]
    template: str


KINDS: dict[str, Kind] = {
    # columns
    "missing_column": Kind(
        InputError,
        "{reader} reads column {column!r}, which is not there (given: {given}).{nearest} "
        "Add it, or name yours with columns={{{word!r}: ...}}.",
    ),
    "duplicate_column": Kind(
        InputError,
        "the table has {count} columns named {column!r}; expected one. Rename or drop the others.",
    ),
    "column_length": Kind(
        InputError,
        "column {column!r} has {length} rows, {other!r} has {expected}. Every column must have one value per row.",
    ),
    "column_type": Kind(
        InputTypeError,
        "column {column!r} holds {given}; expected {expected}. Convert it before the call.",
    ),
    "column_shape": Kind(
        InputError,
        "column {column!r} has shape {shape}; expected one dimension, one value per row. Flatten it or pick a column.",
    ),
    "table_type": Kind(
        InputTypeError,
        "rollouts are given as {given}; expected a table with __arrow_c_stream__ (pyarrow, polars, pandas 3, duckdb), "
        "a dict of NumPy arrays or lists, or a list of dicts.",
    ),
    "record_fields": Kind(
        InputError,
        "record {row} lacks the field {field!r} that others have. Give all records the same fields (None: unknown).",
    ),
    "null_value": Kind(
        InputError,
        "column {column!r} is null in {count} rows, the first: {rows}. Only `reward` and `gate` may be null; "
        "fill or drop these rows.",
    ),
    "not_across_ranks": Kind(
        InputError,
        "recipe {recipe!r}: the objective {stage} reads the current policy of the whole step, which no rank sees. Put "
        "what it takes from the whole into a weight (scope = 'batch'), or use one process.",
    ),
    "counted_twice": Kind(
        InputError,
        "recipe {recipe!r}, {stage}: {why}. A ratio to the sampler may be in a term once: keep one; masks "
        "(SequenceMask, GeometricMask, WTRS, ...) drop without weighing and go with everything.",
    ),
    "nothing_to_control": Kind(
        InputError,
        "recipe {recipe!r} has no {what} whose coefficient could be steered. Choose one that has it, or add it: "
        "recipe.replace(extra=({example},)).",
    ),
    "bad_score_norm": Kind(
        InputError,
        "score_norm is {given} in {count} of the rows that count; expected the squared norm of each answer's gradient, "
        "0 or more and finite.",
    ),
    "lists_differ": Kind(
        InputError,
        "row {row} has {n} values in {first!r} and {m} in {second!r}; expected one a token in both. Check how they "
        "were written: padding must be cut off.",
    ),
    "per_token": Kind(
        InputError,
        "{stage} gives one advantage a token, not one a row. Read out.token_advantages (values and offsets); files "
        "with one number a row have no place for them.",
    ),
    "needs_one_row": Kind(
        InputError,
        "{stage} gives one advantage a token, and this table has rollouts of several rows. Give one row a rollout: "
        "leave the column rollout_id out, or join the rows first.",
    ),
    "rollout_differs": Kind(
        InputError,
        "{column!r} is {other!r} in row {first} and {value!r} in row {row}, which are of one rollout. Give every "
        "row of a rollout the value of the whole (its reward counts once), or give these rows different `rollout_id`s.",
    ),
    "needs_version": Kind(
        InputError,
        "{reader} compares versions, and the trainer's is not given. Give it: process(..., version=...), or --version.",
    ),
    "future_version": Kind(
        InputError,
        "{column!r} is {value} in row {row}, and the trainer is at version {version}. No answer can be newer than the "
        "policy that is trained: check version=, or the column.",
    ),
    "lint": Kind(
        InputError,
        "{count} findings, and strict=True:\n{findings}\nMend the table, or call with strict=False and see out.lint.",
    ),
    "unknown_finish": Kind(
        InputError,
        "column 'finish' holds {given!r}; expected one of {expected}. Map your framework's words to these.",
    ),
    # numbers
    "not_finite": Kind(
        InputError,
        "{column!r} is NaN or infinite in {count} rows, the first: {rows}. A failed scorer must give null (None), "
        "never a number; or use a recipe with not_finite='drop'.",
    ),
    "column_not_finite": Kind(
        InputError,
        "column {column!r} is NaN or infinite in {count} rows, the first: {rows}; expected finite numbers. Fill or "
        "drop these rows.",
    ),
    "negative_length": Kind(
        InputError,
        "{column!r} is negative in row {row}: {value}. Lengths are counts of tokens, 0 or more.",
    ),
    "too_large": Kind(
        InputError,
        "{column!r} is {value} in row {row}; expected at most 1e150 in size, so that its square is a number. Rescale.",
    ),
    "too_long": Kind(
        InputError,
        "row {row} has {length} tokens, more than max_tokens={max_tokens}; so have {count} rows in all. A sequence is "
        "never split: raise max_tokens, or drop or shorten these rows.",
    ),
    "bad_value": Kind(
        InputError,
        "{column!r} is {given} in row {row}; expected {expected}. Drop the row, or correct its value before the call.",
    ),
    "too_few_attempts": Kind(
        InputError,
        "group number {group}, in order of first appearance (first row: {row}), has {attempts} attempts; pass@{k} "
        "draws {k} different ones. Sample more, choose a smaller k, or leave the group out.",
    ),
    "bad_sketch": Kind(
        InputError,
        "the bytes are not a QuantileSketch of this version: {reason}. Give what to_bytes() returned, unchanged.",
    ),
    "too_many_rows": Kind(
        InputError,
        "{given} rows in one call; expected fewer than 4,294,967,295. Process the table in parts of whole groups.",
    ),
    "zero_weight": Kind(
        InputError,
        "batch number {batch}, in order of first appearance, has no tokens in its kept rows, so the mean over its "
        "tokens does not exist. Give a `response_len` above 0, or GlobalNorm(over='sequences').",
    ),
    # recipes and stages
    "unknown_recipe": Kind(
        InputError,
        "there is no recipe {given!r}.{nearest} The names are in grpokit.recipe_names(): {known}.",
    ),
    "bad_implementation": Kind(
        InputError,
        "{implementation} {why}. {remedy}",
    ),
    "unmapped_argument": Kind(
        InputError,
        "{function} has a parameter {name!r} that says nothing to this kit. Say what it is with --map {name}=SOURCE "
        "({known}), or give it a value with --map {name}=0.2.",
    ),
    "uncallable_implementation": Kind(
        InputError,
        "{name} could not be called with any form of its arguments; with the likeliest: {problem}. "
        "Say which argument is what with --map, or wrap it in a function with plainer arguments.",
    ),
    "unknown_law": Kind(
        InputError,
        "There is no law {given!r} of a {kind}.{nearest} The laws are: {known}.",
    ),
    "unknown_rule": Kind(
        InputError,
        "{option} names no rule {given!r}.{nearest} grpokit doctor --list prints them.",
    ),
    "unknown_parameter": Kind(
        InputError,
        "{owner} has no parameter {given!r}.{nearest} Its parameters are: {known}.",
    ),
    "missing_parameter": Kind(
        InputError,
        "{owner} needs {missing}: no paper states it, or it belongs to your run. Give it, as in {example}.",
    ),
    "bad_parameter": Kind(
        InputError,
        "{owner}: {name}={given!r}; expected {expected}.",
    ),
    "parameter_type": Kind(
        InputTypeError,
        "{owner}: {name} is of type {given}; expected {expected}.",
    ),
    "unknown_stage": Kind(
        InputError,
        "there is no {kind} stage {given!r}.{nearest} The registered ones are: {known}.",
    ),
    "registered_twice": Kind(
        InputError,
        "{kind} {name!r} is registered already, by {owner}. Choose another name.",
    ),
    "bad_registration": Kind(
        InputTypeError,
        "cannot register {given} as {kind!r}; expected {expected}.",
    ),
    "stage_result": Kind(
        InputError,
        "{stage} returned {given}; expected {expected}.",
    ),
    # losses
    "missing_token_column": Kind(
        InputError,
        "{reader} reads {column!r}, which neither the TokenBatch nor the call has (given: {given}).{nearest} "
        "Constants go to TokenBatch({column}=...), what carries a gradient goes with the call.",
    ),
    "token_shape": Kind(
        InputError,
        "{name} has shape {given}; expected {expected}.",
    ),
    "token_type": Kind(
        InputTypeError,
        "{name} is {given}; expected {expected}.",
    ),
    "target_range": Kind(
        InputError,
        "a live target is {value}, the logits have {vocabulary} entries. Targets are token ids from 0 to {last}; "
        "mask positions that have none.",
    ),
    "no_kernel": Kind(
        InputError,
        "{what} cannot run: {why}.{remedy}",
    ),
    "overwritten_logits": Kind(
        StateError,
        "these logits are a gradient already: a loss with inplace=True has overwritten them. Compute them again, or "
        "read them before.",
    ),
    "sharded_tensor": Kind(
        InputTypeError,
        "{name} is a DTensor, of which a shard is here. {remedy}",
    ),
    "undeclared_column": Kind(
        InputError,
        "{reader} touches {column!r} without declaring it. Add {column!r} to its `reads`.",
    ),
    "column_twice": Kind(
        InputError,
        "{column!r} is given to the TokenBatch and with the call. Give it once: what carries a gradient goes with the "
        "call, what does not to the TokenBatch.",
    ),
    "reserved_column": Kind(
        InputError,
        "a column cannot be given as {column!r} {where}: the loss makes it itself, or takes it elsewhere. Choose "
        "another name.",
    ),
    "ambiguous_column": Kind(
        InputError,
        "{column!r} has shape {shape}, and the packed batch has as many places as sequences, some of them empty: "
        "this may be a value per place or per sequence. Leave out the empty sequences.",
    ),
    "bad_cu_seqlens": Kind(
        InputError,
        "cu_seqlens is {given}; expected whole numbers that start at 0, never fall and end at the {places} places "
        "that there are.",
    ),
    "not_observed": Kind(
        StateError,
        "{recipe} needs the current policy on the whole batch, and not every part was shown to it. Call "
        "grpokit.loss.observe on every part of the split, without gradient, before the first loss.",
    ),
    "not_synchronized": Kind(
        StateError,
        "the batch's denominators are those of all ranks, but not the one of the {objective} term, {aggregate}. Call "
        "batch.synchronize with the recipe that the loss is given, on every rank.",
    ),
    # routing
    "bad_experts": Kind(
        InputError,
        "the experts at {place} are {given}; expected different ones from 0 to {last}, or -1 in all places for a token "
        "that is not recorded. A layer of zeros may be one without experts: leave it out.",
    ),
    "no_router": Kind(
        InputError,
        "{model} {problem}. Routing is recorded and replayed where it is exact, in routers of transformers: {known}.",
    ),
    "routing_pass": Kind(
        StateError,
        "{what}: {problem}. {remedy}",
    ),
    # the host
    "bad_threads": Kind(
        InputError,
        "{source} is {given!r}; expected a whole number of threads, 1 or more.",
    ),
    "bad_keys": Kind(
        InputTypeError,
        "column {column!r} is {given}; expected ids: integers, strings or bytes, all of one kind. A composite key is "
        "several columns: columns={{'group_id': [...]}}.",
    ),
    "null_key": Kind(
        InputError,
        "column {column!r} is null ({given}); expected an id in every row. Fill or drop these rows.",
    ),
    "broken_package": Kind(
        InputError,
        "{package} offers stages of grpokit in {entry!r}, which cannot be imported: {reason}. Mend or remove it.",
    ),
    "file_exists": Kind(
        FileError,
        "{path} exists already. Choose another name, or say --overwrite.",
    ),
    "file_unreadable": Kind(
        FileError,
        "{path} cannot be read: {reason}.",
    ),
    "nothing_to_read": Kind(
        FileError,
        "nothing in {path} can be read ({problems}). Give the directory of a run, or rollout files.",
    ),
    "reader_died": Kind(
        FileError,
        "{path} cannot be read: the process that read it was ended by {signal}. What it had begun to write is removed. "
        "{remedy}",
    ),
    "file_unwritable": Kind(
        FileError,
        "{path} cannot be written: {reason}. Nothing was written.",
    ),
    "output_unwritable": Kind(
        FileError,
        "standard output cannot be written: {reason}. What is there is cut.",
    ),
    "file_changed": Kind(
        FileError,
        "{path} changed while it was read. Nothing was written; filter it when nobody writes to it.",
    ),
    "mixed_files": Kind(
        InputError,
        "the inputs are {kinds}; expected files of one kind. Filter each kind by itself.",
    ),
    "schemas_differ": Kind(
        InputError,
        "{path} has other columns or types than {other}, so they cannot be written into one file. Filter it by itself.",
    ),
    "missing_field": Kind(
        InputError,
        "{path} has no column {column!r}, which is read as `{word}` (it has: {given}).{nearest} "
        "Name it with --column {word}=NAME.",
    ),
    "unknown_format": Kind(
        InputError,
        "there is no format {given!r}.{nearest} Known: {known}.",
    ),
    "not_of_format": Kind(
        InputError,
        "{path} is not in the format {format!r}: it lacks {missing} (it has: {given}), and {way}.",
    ),
    "uneven_files": Kind(
        InputError,
        "{path} has {column!r}, which is read as `{word}`, and {other} has not. Filter them apart, or give all files "
        "the same columns.",
    ),
    "late_field": Kind(
        InputError,
        "there is a field {column!r}, read as `{word}`, and the first line has none. Give every line the same fields.",
    ),
    "missing_part": Kind(
        InputError,
        "{path}: no row has the part {parts} of --reward ({column}). Look at the names.",
    ),
    "file_twice": Kind(
        FileError,
        "{path} is given twice, and its rows would count twice. Give each file once.",
    ),
    "choose_reward": Kind(
        InputError,
        "{path}: which column is the reward? These may be: {names}. Say --reward NAME, or --reward a=1,b=0.5 for a "
        "weighted sum.",
    ),
    "reward_nested": Kind(
        InputTypeError,
        "the reward, {column!r}, is {given} in row {row}; expected a number. {way}; "
        "--reward a=1,b=0.5 is a weighted sum.",
    ),
    "group_size": Kind(
        InputError,
        "{path} has {rows:,} rows, and groups of {size} rows do not go into that. Was the file cut off, or is "
        "--group-size not the number of answers to a prompt?",
    ),
    "column_exists": Kind(
        InputError,
        "{path} has a column {column!r} already. {remedy}",
    ),
    "bad_line": Kind(
        InputError,
        "{path}, line {line}: {reason}. Every line must be one JSON object.",
    ),
    "line_too_long": Kind(
        InputError,
        "{path}, line {line} is longer than {limit:,} bytes. Is it a file of JSON lines?",
    ),
    "in_file": Kind(
        InputError,
        "{path}, {place}: {problem}",
    ),
    "not_contiguous": Kind(
        InputError,
        "{path}: rows of a group lie apart, and --order contiguous says that they do not. Use --order any, which holds "
        "the columns that are read of all rows.",
    ),
    "group_too_large": Kind(
        InputError,
        "group {group!r} has {rows:,} rows or more, beyond --max-group-rows {limit:,}. Is this column the id of the "
        "prompt? Raise the limit if it is.",
    ),
    "missing_engine": Kind(
        InputError,
        "{what} needs {package}, which is not installed. Run: pip install '{install}'.",
    ),
    "needs_whole_batch": Kind(
        InputError,
        "{stage} looks at a whole batch, and the workers see parts of the table. Add a `step` column, so that a batch "
        "is the rows of one step, take the stage out of the recipe, or use grpokit.process on the whole table.",
    ),
    "split_group": Kind(
        StateError,
        "a block has {rows} rows of groups such as {group!r}, of which {expected} were sent: the rows of a group came "
        "in several blocks, and no mean of a part is taken. Use another num_blocks or the default shuffle strategy of "
        "Ray, and see that what comes before the filter gives the same rows when a task is run again.",
    ),
    "in_block": Kind(
        InputError,
        "{problem} (Row numbers are counted within a block of {rows} rows, whose first group is {group!r}.)",
    ),
    "group_returns": Kind(
        InputError,
        "group {group!r} comes back after other groups: its rows do not lie together, or a batch has cut it. {remedy}",
    ),
    "not_in_order": Kind(
        StateError,
        "the batches begin at row {given}, and row {expected} is next: whole groups can be checked in one process that "
        "sees all rows. Call map(..., batched=True, with_indices=True) without num_proc, sharding or shuffling.",
    ),
    "missing_extra": Kind(
        InputError,
        "{what} needs {package}, which is not installed. Run: pip install 'grpokit[{extra}]'.",
    ),
    "reward_failed": Kind(
        InputError,
        "{function} failed on {count} of {total} completions of this step, and rewards.max_failures={limit} is the "
        "largest share of them; {first}. An exception is never a reward of 0: fix the function, return None for what "
        "it cannot score, or raise rewards.max_failures or rewards.seconds.",
    ),
    "reward_unloadable": Kind(
        InputError,
        "the reward function {given} cannot be loaded: {reason}. Write package.module:name of something that can be "
        "imported, or path/to/file.py:name.",
    ),
    "reward_column": Kind(
        InputError,
        "the reward function {function!r} needs {column!r}, which the task's items have not (they have: {given})."
        "{nearest} Add the column, or give the argument a default.",
    ),
    "given_in_python": Kind(
        InputError,
        "the {what} {name!r} was given in Python, and the configuration has only its name. Give it again: "
        "Trainer(config, {argument}=...), or to evaluate evaluate_run(directory, {argument}=...).",
    ),
    # asynchronous training
    "ledger_ticket": Kind(
        InputError,
        "ticket {given!r}: {problem}. Use a ticket that admit() returned, until its rollout is taken, evicted or "
        "aborted.",
    ),
    "ledger_state": Kind(
        StateError,
        "ticket {ticket} is {state}; {action}() needs one that is {expected}. Nothing was changed. Look for a rollout "
        "that two parts of the program finish.",
    ),
    "ledger_version": Kind(
        InputError,
        "{what} is {given}, the trainer is at version {version}. {remedy}",
    ),
    "ledger_snapshot": Kind(
        InputError,
        "this snapshot cannot be restored: {problem}. Take an earlier one, or begin anew with "
        "StalenessLedger(version=...).",
    ),
    "collector_full": Kind(
        StateError,
        "{waiting} rows of {groups} groups wait and {late} late ones are kept, as many as max_rows={max_rows}; the row "
        "of group {key!r} was not taken. The largest group that waits is {largest!r} with {have} rows (expected: "
        "{expected}). Hand out what will not be completed with close(key), the late rows with take_late(), or raise "
        "max_rows.",
    ),
    "collector_size": Kind(
        InputError,
        "a row of group {key!r} says {given} as the group's size in its field {field!r}; expected {expected}. "
        "The row was not taken.",
    ),
    # inside other frameworks
    "refused_option": Kind(
        InputError,
        "{owner}: {option}={given!r} is {framework}'s own say in what recipe {recipe!r} states. {remedy}",
    ),
    "not_handed_over": Kind(
        InputError,
        "recipe {recipe!r}: {reader} reads {what}, which {framework} does not hand over. {remedy}",
    ),
    "other_framework": Kind(
        StateError,
        "{package} {version} has no {missing}, which {adapter} relies on; it is written for {package} {known}. Install "
        "that one.",
    ),
    # training
    "too_few_prompts": Kind(
        InputError,
        "the task gave {found} {side} prompts where {needed} are needed. One prompt in eight, by a hash of its text, "
        "is held out; ask for fewer (evaluation.prompts={found}), or give the task more of them.",
    ),
    "unknown_task": Kind(
        InputError,
        "there is no task {given!r}.{nearest} Known: {known}; or reasoning_gym:NAME, or task.file=prompts.jsonl.",
    ),
    "bad_prompt": Kind(
        InputError,
        "{path}, {place}: {problem} Every row needs a prompt, a text or messages such as "
        "[{{'role': 'user', 'content': '...'}}]; task.prompt names its column.",
    ),
    "no_answers": Kind(
        InputError,
        "{path} has no column {column!r} (it has: {given}).{nearest} Name the one of the right answers with "
        "task.answer, or say what a completion is worth with rewards.functions.",
    ),
    "bad_answer": Kind(
        InputError,
        "{path}, {place}: the answer is {given}; expected a text or a number. Mend or drop the row, or say what a "
        "completion is worth with rewards.functions.",
    ),
    "shared_prompts": Kind(
        InputError,
        "{count} prompts of {other} are in {path} as well, such as {first!r}. Evaluation would ask what was trained "
        "on: take them out of one of the files.",
    ),
    "chat_template": Kind(
        InputError,
        "the tokenizer's chat template refuses the messages of {prompt!r}: {reason}. Give it the roles that it knows.",
    ),
    "no_demonstrations": Kind(
        InputError,
        "the task {task} has no demonstrate(rng, item), which the warm start needs. Add it, or set warm_start.steps=0.",
    ),
    "untokenizable": Kind(
        InputError,
        "the tokenizer cannot encode {text!r}: it is empty or has an unknown character. The tiny model knows "
        "space, newline and {known}.",
    ),
    "diverged": Kind(
        InputError,
        "{what} is NaN or infinite: training has diverged. Lower learning_rate, or see the rewards in metrics.jsonl.",
    ),
    "bad_model": Kind(
        InputError,
        "model={name!r}: {why}. {remedy}",
    ),
    "resume_differs": Kind(
        StateError,
        "{path} is another run: {differences}. Resume it as it was (more steps are fine), or begin a new one.",
    ),
    "no_steps_left": Kind(
        StateError,
        "{path} is at its end: all {steps} steps are done. Say --set steps=... to go on for more.",
    ),
    "sampler_differs": Kind(
        StateError,
        "the sampler's log-probs are {mean:.3g} nats off the trainer's in the mean and {most:.3g} at most, on tokens "
        "that the weights after {version} updates sampled, and max_logp_gap is {bound:.3g}: the sampler has other "
        "weights, or computes in another way. Look at how it gets its weights; raise max_logp_gap if it is precision.",
    ),
    "rollout_process_died": Kind(
        StateError,
        "the rollout process {how}, the {times}th time before it had sampled a step. So it is where memory runs out: "
        "it holds the model once more. --resume goes on from the last snapshot; async_level=0 samples in the trainer.",
    ),
    "ranks_timed_out": Kind(
        StateError,
        "{ranks} did not come within {seconds:g} s, and rank {rank} waited in the phase {phase!r}: {seen}. See what it "
        "does there; raise ranks.timeout if it is only slow. --resume goes on from the last snapshot.",
    ),
    "rank_lost": Kind(
        StateError,
        "the connection to {ranks} broke off while rank {rank} was in the phase {phase!r}: {seen}. It has ended; see "
        "what it said last, or where memory ran out. --resume goes on from the last snapshot.",
    ),
    "ranks_differ": Kind(
        StateError,
        "the ranks drew different prompts of the task {task}. Its prompts(rng, n) must depend on rng alone, and its "
        "files must be the same on all machines.",
    ),
    "rank_failed": Kind(
        StateError,
        "rank {rank} failed in the phase {phase!r}, and all stop: {reason}. Its own output has the traceback.",
    ),
    "rollout_failed": Kind(StateError, "the rollout process failed, as shown above: {reason}."),
    "not_sendable": Kind(
        InputError,
        "{what} cannot be given to the rollout process of async_level={level}: {why}. Define it in a module that can "
        "be imported, at its top level, or set async_level=0.",
    ),
    "no_run": Kind(
        FileError,
        "{path} is not the directory of a run: it has no config.toml. Give one that `grpokit train` has written.",
    ),
    "server_failed": Kind(
        StateError,
        "{url} did not answer {path} in {tries} tries, the last time: {reason}. See that the server runs and that "
        "engine.url is right; engine.timeout and engine.retries say how long it is waited for.",
    ),
    "server_refused": Kind(
        StateError,
        "{url} refused {path} with status {status}: {message}. {remedy}",
    ),
    "server_answer": Kind(
        StateError,
        "{url} answered {given}; expected {expected}. See which protocol it speaks (engine.protocol), that it is a "
        "version which returns token ids, and that it serves the model that is trained.",
    ),
    "server_version": Kind(
        StateError,
        "{url} sampled with the weights {given!r}, and {expected!r} are those that were sent last: it did not load "
        "them, was started again, or another run uses it. Give each run a server of its own.",
    ),
    "not_a_run": Kind(
        FileError,
        "{path} is not the directory of a run, so it is not replaced. Choose another name, or remove it yourself.",
    ),
}


def error(kind: str, /, **context: object) -> GrpokitError:
    """The exception of that kind, ready to raise.

    Examples
    --------
    >>> error("bad_threads", source="threads", given=0)
    InputError('threads is 0; expected a whole number of threads, 1 or more.')
    """
    return KINDS[kind].cls(kind, **context)


def nearest(given: str, known: Iterable[str]) -> str:
    """' Did you mean ...?' with the closest of the known names, or nothing.

    Examples
    --------
    >>> nearest("dappo", ["grpo", "dapo"])
    " Did you mean 'dapo'?"
    >>> nearest("xyz", ["grpo", "dapo"])
    ''
    """
    close = difflib.get_close_matches(given, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def _restore(kind: str, context: dict[str, object]) -> GrpokitError:
    return error(kind, **context)
