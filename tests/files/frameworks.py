"""Rollout files as the frameworks write them, from one table of rollouts.

Each writer makes the fields that the framework's own code makes, with their types; where it was read is beside it. The
repositories were read in August 2026 (AReaL: November). What is not known from the rollouts is filled with plausible
values, so that a reader which needs more than it says is found out.
"""

import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq


def rollouts(seed=0, steps=3, groups=12, size=4):
    """Records: step, prompt, reward, failed, truncated, the versions of the first and last token, lengths."""
    rng = np.random.default_rng(seed)
    found = []
    for step in range(1, steps + 1):
        for prompt in rng.choice(groups, groups // 2, replace=False).tolist():
            ease = rng.choice([0.0, 0.3, 0.7, 1.0])
            for sample in range(size):
                first = max(0, step - int(rng.integers(0, 4)))
                found.append(
                    {
                        "step": step,
                        "prompt": prompt,
                        "sample": sample,
                        "reward": float(rng.random() < ease),
                        "style": float(rng.integers(0, 3)) / 2,
                        "failed": bool(rng.random() < 0.1),
                        "truncated": bool(rng.random() < 0.15),
                        "versions": [first, *sorted(rng.integers(first, step + 1, 2).tolist())],
                        "prompt_len": 7 + prompt,
                        "length": int(rng.integers(1, 50)),
                    }
                )
    return found


def lines(path: Path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    return path


def verl(place: Path, rows, *, uid=False):
    """verl 0.9: RayPPOTrainer._write_generations, one file a step; rows are in the order of the balanced ranks."""
    order = np.random.default_rng(1).permutation(len(rows))
    written = []
    for at in order:
        row = rows[at]
        record = {
            "input": f"user\nproblem {row['prompt']}\nassistant\n",
            "output": f"answer {row['sample']}",
            "gts": str(row["prompt"]),
            "score": row["reward"],
            "step": row["step"],
            "acc": bool(row["reward"]),
        }
        if uid:
            record["uid"] = f"{row['step']:04x}-{row['prompt']:04x}"
        lines(place / f"{row['step']}.jsonl", [record])
        written.append((row["step"], at))
    return [int(at) for step in sorted({row["step"] for row in rows}) for s, at in written if s == step]


def slime_sample(row, index, *, parts=False):
    """slime/utils/types.py: Sample.to_dict, every field."""
    status = "failed" if row["failed"] else "truncated" if row["truncated"] else "completed"
    return {
        "group_index": row["step"] * 1000 + row["prompt"],
        "index": index,
        "rollout_id": None,
        "prompt": f"problem {row['prompt']}",
        "tokens": list(range(row["prompt_len"] + row["length"])),
        "multimodal_inputs": None,
        "multimodal_train_inputs": None,
        "multimodal_train_input_id": None,
        "apply_chat_template_kwargs": {},
        "response": f"answer {row['sample']}",
        "response_length": row["length"],
        "label": "4",
        "reward": {"score": row["reward"], "pred": "4", "style": row["style"]} if parts else row["reward"],
        "loss_mask": [1] * row["length"],
        "weight_versions": [str(version) for version in row["versions"]],
        "rollout_log_probs": [-0.5] * row["length"],
        "rollout_top_p_token_ids": None,
        "rollout_top_p_token_offsets": None,
        "rollout_routed_experts": None,
        "remove_sample": row["failed"],
        "teacher_log_probs": None,
        "status": status,
        "metadata": {"rm_type": "math"},
        "generate_function_path": None,
        "custom_rm_path": None,
        "train_metadata": None,
        "session_id": None,
        "non_generation_time": 0.0,
        "spec_info": {"spec_accept_token_num": 0, "spec_draft_token_num": 0},
        "prefix_cache_info": {"cached_tokens": 0, "total_prompt_tokens": 0},
    }


def slime(place: Path, rows, *, parts=False):
    lines(place / "rollout_0.jsonl", [slime_sample(row, at, parts=parts) for at, row in enumerate(rows)])
    return list(range(len(rows)))


def trace(row, *, trainable=True):
    """verifiers/v1/trace.py: Trace, dumped; a failed one has no rewards."""
    return {
        "id": f"trace-{row['sample']}",
        "agent": {"name": "solver", "trainable": trainable},
        "task": {"data": {"idx": row["prompt"]}},
        "nodes": [{"message": {"role": "assistant", "content": "4"}, "sampled": True, "mask": [True] * row["length"]}],
        "calls": [{"node": 0, "finish_reason": "length" if row["truncated"] else "stop"}],
        "rewards": {} if row["failed"] else {
            "correct": {"score": row["reward"], "weight": 1.0},
            "style": {"score": row["style"], "weight": 0.0},
        },
        "metrics": {"num_turns": 1.0},
        "ok": not row["failed"],
        "stop_condition": "error" if row["failed"] else None,
        "errors": [{"type": "ToolError", "message": "boom"}] if row["failed"] else [],
        "info": {},
    }  # fmt: skip


def episode(row):
    """verifiers/v1/episode.py: Episode.to_record."""
    return {
        "id": f"{row['step']}-{row['prompt']}-{row['sample']}",
        "env": {"id": "math-env", "name": "math"},
        "task": {"data": {"idx": row["prompt"]}},
        "group": {"id": f"{row['step']:04x}-{row['prompt']:04x}"},
        "run": {
            "type": "train",
            "id": "r1",
            "work": {
                "type": "train",
                "step": row["step"],
                "policy": {"start": min(row["versions"]), "end": max(row["versions"])},
            },
        },
        "ok": not row["failed"],
        "errors": [],
        "traces": [trace(row, trainable=False) | {"rewards": {"judge": {"score": 9.0}}, "ok": True}, trace(row)],
    }


def prime_rl(place: Path, rows):
    """prime-rl/monitors/file.py: traces.jsonl, appended as episodes complete, so groups interleave."""
    order = np.random.default_rng(2).permutation(len(rows)).tolist()
    order.sort(key=lambda at: rows[at]["step"])
    for at in order:
        lines(place / f"step_{rows[at]['step']}" / "train" / "effective" / "traces.jsonl", [episode(rows[at])])
    return order


SAMPLES = pa.schema(
    [
        *(("run_id", pa.string()), ("step", pa.int64()), ("tag", pa.string()), ("problem_id", pa.int64())),
        *(("sample_id", pa.int64()), ("prompt", pa.string()), ("completion", pa.string())),
        *(("trajectory", pa.string()), ("answer", pa.string()), ("env_name", pa.string()), ("task", pa.string())),
        *(("info", pa.string()), ("reward", pa.float64()), ("advantage", pa.float64()), ("metrics", pa.string())),
        *(("timing", pa.string()), ("num_input_tokens", pa.int64()), ("num_output_tokens", pa.int64())),
        ("created_at", pa.timestamp("us", tz="UTC")),
    ]
)


def prime_rl_samples(place: Path, rows):
    """prime-rl/monitors/prime.py: SAMPLE_SCHEMA and episodes_to_parquet_bytes; a failed trace has reward 0 there."""
    records = [
        {
            "run_id": "r1",
            "step": row["step"],
            "tag": "",
            "problem_id": row["prompt"],
            "sample_id": at,
            "prompt": "",
            "completion": json.dumps([{"role": "assistant", "content": "4"}]),
            "trajectory": json.dumps([{"messages": [], "num_output_tokens": row["length"], "advantage": None}]),
            "answer": "",
            "env_name": "math",
            "task": json.dumps({"idx": row["prompt"]}),
            "info": json.dumps({"native_wrapper": episode(row), "native_trace_index": 1}),
            "reward": 0.0 if row["failed"] else row["reward"],
            "advantage": None if row["failed"] else 0.5,
            "metrics": json.dumps({"num_turns": 1.0}),
            "timing": "{}",
            "num_input_tokens": row["prompt_len"],
            "num_output_tokens": row["length"],
            "created_at": datetime(2026, 8, 21, tzinfo=UTC),
        }
        for at, row in enumerate(rows)
    ]
    place.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(records, schema=SAMPLES), place / "samples.parquet", compression="snappy")
    return list(range(len(rows)))


def open_instruct(place: Path, rows):
    """open_instruct/rl_utils.py: RolloutRecord in shards, and the metadata file beside them."""
    prompts = {}
    for at, row in enumerate(rows):
        held = prompts.setdefault(row["step"], {})
        record = {
            "step": row["step"],
            "sample_idx": at,
            "prompt_idx": held.setdefault(row["prompt"], len(held)),
            "prompt_tokens": list(range(row["prompt_len"])),
            "response_tokens": list(range(row["length"])),
            "reward": row["reward"],
            "advantage": 0.0,
            "finish_reason": "length" if row["truncated"] else "stop",
            "dataset": "math",
            "ground_truth": [4],
            "request_info": {"num_calls": 0, "timeouts": 0, "tool_errors": "", "rollout_state": {}},
            "logprobs": [-0.5] * row["length"],
        }
        lines(place / f"run_rollouts_{row['step'] // 2:06d}.jsonl", [record])
    about = {"run_name": "run", "git_commit": "e6c3044", "model_name": "m", "timestamp": "2026-08-20T00:00:00+00:00"}
    lines(place / "run_metadata.jsonl", [about])
    return list(range(len(rows)))


def areal(place: Path, rows):
    """areal/infra/workflow_executor.py: WorkflowExecutor._dump_trajectory, a file a task in a folder a version."""
    tasks, found = {}, {}
    for at, row in enumerate(rows):
        task = tasks.setdefault((row["step"], row["prompt"]), len(tasks))
        path = place / "rollout" / str(row["step"]) / f"{task}.jsonl"
        record = {
            "task_id": task,
            "sample_idx": row["sample"],
            "seqlen": row["prompt_len"] + row["length"],
            "prompt_len": row["prompt_len"],
            "head_version": min(row["versions"]),
            "tail_version": max(row["versions"]),
            "version_rle": [[version, 1] for version in row["versions"]],
            "reward": row["reward"],
            "prompt": f"problem {row['prompt']}",
            "completion": f"answer {row['sample']}",
        }
        lines(path, [record])
        found.setdefault(path, []).append(at)
    return [at for path in sorted(found) for at in found[path]]


def nemo_gym(place: Path, rows):
    """nemo_gym/rollout_collection.py: results as they finish; older ones hold failures, now beside them."""
    order = np.random.default_rng(3).permutation(len(rows)).tolist()
    task = {key: at for at, key in enumerate(dict.fromkeys((row["step"], row["prompt"]) for row in rows))}
    for at in order:
        row = rows[at]
        details = {"reason": "max_output_tokens"} if row["truncated"] else None
        record = {
            "responses_create_params": {"input": [{"role": "user", "content": f"problem {row['prompt']}"}]},
            "response": {
                "id": f"resp_{at}",
                "created_at": 1759204114.0,
                "error": None,
                "incomplete_details": details,
                "output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "4"}]}],
                "status": "incomplete" if row["truncated"] else "completed",
                "usage": {"input_tokens": row["prompt_len"], "output_tokens": row["length"]},
            },
            "reward": 0.0 if row["failed"] else row["reward"],
            "_ng_task_index": task[row["step"], row["prompt"]],
            "_ng_rollout_index": row["sample"],
            "agent_ref": {"type": "responses_api_agents", "name": "simple_agent"},
        }
        if row["failed"]:
            record["_ng_failure_class"] = "judge_failed"
        lines(place / "rollouts.jsonl", [record])
    lines(place / "rollouts_failures.jsonl", [{"_ng_task_index": 0, "_ng_failure_class": "timeout_exceeded"}])
    lines(place / "rollouts_materialized_inputs.jsonl", [{"_ng_task_index": 0, "_ng_rollout_index": 0}])
    return order


def trl(place: Path, rows):
    """trl/trainer/grpo_trainer.py: completions_%05d.parquet by pandas; a function that returns None is NaN."""
    place.mkdir(parents=True, exist_ok=True)
    found = []
    for step in sorted({row["step"] for row in rows}):
        mine = [at for at, row in enumerate(rows) if row["step"] == step]
        table = {
            "step": [step] * len(mine),
            "prompt": [f"problem {rows[at]['prompt']}" for at in mine],
            "completion": [f"answer {rows[at]['sample']}" for at in mine],
            "accuracy_reward": [float("nan") if rows[at]["failed"] else rows[at]["reward"] for at in mine],
            "style_reward": [float("nan") if rows[at]["failed"] else rows[at]["style"] for at in mine],
            "advantage": [0.0] * len(mine),
        }
        pd.DataFrame(table).to_parquet(place / f"completions_{step:05d}.parquet")
        found += mine
    return found
