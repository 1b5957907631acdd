"""Compare the request of a job with the nodes of its partition (pure functions of scontrol's output)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from launch.progress import slurm_seconds
from launch.slurm import oneliner_fields

_MB_OF_A_GB = 1024  # Slurm's G


@dataclass(frozen=True)
class Request:
    """The resources that a job requests. Memory is in MB; `tasks`, `cpus`, `memory` and `gpus` are per node."""

    nodes: int
    tasks: int
    cpus: int
    memory: int
    gpus: int
    gpu_type: str = ""
    minutes: int = 0
    partition: str = ""
    constraint: str = ""
    exclude: str = ""


@dataclass(frozen=True)
class Node:
    """The resources of a node. Memory is in MB; `gpus` counts GPUs by type ('' if the site names no type)."""

    name: str
    cpus: int
    memory: int
    gpus: Mapping[str, int]
    features: frozenset[str]
    partitions: frozenset[str]
    state: str

    def gpus_of(self, gpu_type: str) -> int:
        return self.gpus.get(gpu_type, 0) if gpu_type else sum(self.gpus.values())

    @property
    def text(self) -> str:
        gpus = ", ".join(_counted(count, f"{name} GPU".strip()) for name, count in self.gpus.items()) or "no GPU"
        return f"{_counted(self.cpus, 'CPU')}, {_gb(self.memory)}, {gpus}"


@dataclass(frozen=True)
class Partition:
    """The limits of a partition; None means no limit. Memory is in MB."""

    name: str
    is_default: bool
    is_up: bool
    minutes: float | None
    nodes: int | None
    cpus: int | None
    memory: int | None


# ------------------------------------------------------------------------------------------------------------ reading


def _limit(text: str) -> int | None:
    return int(text) if text.isdigit() else None


def parse_nodes(text: str) -> list[Node]:
    """The nodes in the output of `scontrol show node --oneliner`; other lines are skipped."""
    found = []
    for fields in map(oneliner_fields, text.splitlines()):
        if not {"NodeName", "CPUTot", "RealMemory"} <= set(fields):
            continue
        reserved = int(fields.get("MemSpecLimit", "0"))
        features = fields.get("ActiveFeatures", "(null)")
        found.append(
            Node(
                name=fields["NodeName"],
                cpus=int(fields.get("CPUEfctv", fields["CPUTot"])),
                memory=int(fields["RealMemory"]) - reserved,
                gpus=gpu_counts(fields.get("Gres", "")),
                features=frozenset() if features == "(null)" else frozenset(features.split(",")),
                partitions=frozenset(fields.get("Partitions", "").split(",")) - {""},
                state=fields.get("State", ""),
            )
        )
    return found


def gpu_counts(gres: str) -> dict[str, int]:
    """The number of GPUs by type in a node's Gres: 'gpu:a100:4(S:0-1),gpu:2' -> {'a100': 4, '': 2}."""
    counts: dict[str, int] = {}
    for item in re.sub(r"\([^)]*\)", "", gres).split(","):
        if match := re.fullmatch(r"gpu(?::([^:]*[^:\d][^:]*))?(?::(\d+))?", item):
            counts[match[1] or ""] = counts.get(match[1] or "", 0) + int(match[2] or 1)
    return counts


def parse_partitions(text: str) -> dict[str, Partition]:
    """The partitions in the output of `scontrol show partition --oneliner`, by name."""
    found = {}
    for fields in map(oneliner_fields, text.splitlines()):
        if name := fields.get("PartitionName"):
            seconds = slurm_seconds(fields.get("MaxTime", ""))
            found[name] = Partition(
                name=name,
                is_default=fields.get("Default") == "YES",
                is_up=fields.get("State", "UP") == "UP",
                minutes=None if seconds is None else seconds / 60,
                nodes=_limit(fields.get("MaxNodes", "")),
                cpus=_limit(fields.get("MaxCPUsPerNode", "")),
                memory=_limit(fields.get("MaxMemPerNode", "")),
            )
    return found


# ---------------------------------------------------------------------------------------------------------- comparing


def excess(request: Request, nodes: Iterable[Node], partitions: Mapping[str, Partition]) -> list[str]:
    """A sentence for each part of a request that exceeds every node of its partition, then a line with the request and a
    line with the nodes; [] if the request fits, or if the partition is unknown."""
    name = request.partition or next((p.name for p in partitions.values() if p.is_default), "")
    if "," in name or not name:  # Slurm chooses among several partitions
        return []
    if name not in partitions:
        return [f"--partition {name} does not exist: give one of {', '.join(sorted(partitions))}"]
    partition = partitions[name]
    every = [node for node in nodes if name in node.partitions]
    if not every:
        return []
    excluded = host_names(request.exclude)
    allowed = [node for node in every if node.name not in excluded]
    wanted = set(re.split(r"[&,]", request.constraint)) if re.fullmatch(r"[\w.&,-]+", request.constraint) else set()
    usable = [node for node in allowed if wanted <= node.features]
    found = []
    if allowed and not usable:
        known = ", ".join(sorted(set().union(*(node.features for node in allowed)))) or "none"
        found.append(
            f"--constraint {request.constraint}: no node of partition {name} has these features; they have: {known}"
        )
    found += _per_node_excess(request, partition, usable or allowed or every)
    found += _node_count_excess(request, partition, every, usable, bool(found))
    if partition.minutes is not None and request.minutes > partition.minutes:
        found.append(
            f"requested {_counted(request.minutes, 'minute')}, partition {name} allows {partition.minutes:g}: give --time_min {int(partition.minutes)}"
        )
    if not found:
        return []
    return [*found, f"requested: {request_text(request, name)}", f"partition {name} has: {nodes_text(every)}"]


def _per_node_excess(request: Request, partition: Partition, nodes: Sequence[Node]) -> list[str]:
    """The parts of a request that exceed the largest node."""
    where = f"the largest node of partition {partition.name} has"
    cpus = int(min(max(node.cpus for node in nodes), partition.cpus or math.inf))
    memory = int(min(max(node.memory for node in nodes), partition.memory or math.inf))
    gpus = max(node.gpus_of(request.gpu_type) for node in nodes)
    # the number of GPUs (or tasks) that fit into such a node with one CPU and one GB for each
    wanted = request.gpus or request.tasks
    units = max(min(wanted, cpus, memory // _MB_OF_A_GB, gpus if request.gpus and gpus else wanted), 1)
    fewer = f" {'--gpus_per_node' if request.gpus else '--tasks_per_node'} {units}" if units < wanted else ""
    found = []
    if request.cpus > cpus:
        found.append(
            f"requested {_counted(request.cpus, 'CPU')} on each node, {where} {cpus}: give --cpus_per_gpu {max(cpus // units, 1)}{fewer}"
        )
    if request.memory > memory:
        gb = max(memory // _MB_OF_A_GB // units, 1)
        found.append(
            f"requested {_gb(request.memory)} of memory on each node, {where} {_gb(memory)}: give --mem_per_gpu_gb {gb}{fewer}"
        )
    if request.gpus > gpus:
        found.append(_gpu_excess(request, partition, nodes, gpus))
    return found


def _gpu_excess(request: Request, partition: Partition, nodes: Sequence[Node], most: int) -> str:
    kind = f"{request.gpu_type} GPU".strip()
    requested = f"requested {_counted(request.gpus, kind)} on each node"
    if most:
        return f"{requested}, the largest node of partition {partition.name} has {most}: give --gpus_per_node {most}"
    types = sorted({name for node in nodes for name in node.gpus} - {""})
    if request.gpu_type and types:
        return f"{requested}, partition {partition.name} has GPUs of type {', '.join(types)}: give one of them as --gpu_type"
    if request.gpu_type and any(node.gpus for node in nodes):
        return f"{requested}, the GPUs of partition {partition.name} have no type: leave out --gpu_type"
    return f"{requested}, partition {partition.name} has none: give another --partition, or train on CPUs (--gpus_per_node 0 -- --gpu False)"


def _has_enough(request: Request, node: Node) -> bool:
    return (
        request.cpus <= node.cpus and request.memory <= node.memory and request.gpus <= node.gpus_of(request.gpu_type)
    )


def _node_count_excess(
    request: Request, partition: Partition, every: Sequence[Node], usable: Sequence[Node], is_named: bool
) -> list[str]:
    """An error if too few nodes exist, or too few have enough of everything. `is_named`: another error already
    names what every node lacks."""
    requested, where = f"requested {_counted(request.nodes, 'node')}", f"partition {partition.name}"
    if usable and request.nodes > len(usable):
        left = len(every) - len(usable)
        without = f" ({left} of {len(every)} are excluded or lack --constraint)" if left else ""
        return [f"{requested}, {where} has {len(usable)}{without}: give --nodes {len(usable)}"]
    if partition.nodes is not None and partition.nodes < request.nodes:
        return [f"{requested}, {where} allows {partition.nodes} for a job: give --nodes {partition.nodes}"]
    fitting = [node.name for node in usable if _has_enough(request, node)]
    if len(fitting) < request.nodes and not is_named:
        names = f" ({', '.join(fitting[:4])})" if fitting else ""
        return [
            f"{requested} with all of this on each, {where} has {len(fitting)}{names}: request less on each node, or fewer nodes"
        ]
    return []


def host_names(expression: str) -> set[str]:
    """The hosts in an expression such as 'gpu[003-004,7],n1'."""
    found: set[str] = set()
    for item in re.findall(r"[^,\[]+(?:\[[^\]]*\])?[^,\[]*", expression):
        match = re.fullmatch(r"([^\[]*)\[([^\]]*)\](.*)", item)
        if match is None:
            found.add(item)
            continue
        for part in match[2].split(","):
            first, _, last = part.partition("-")
            if first.isdigit() and (last or first).isdigit():
                numbers = range(int(first), int(last or first) + 1)
                found |= {f"{match[1]}{number:0{len(first)}d}{match[3]}" for number in numbers}
    return found


# ------------------------------------------------------------------------------------------------------------- wording


def _counted(count: float, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _gb(megabytes: float) -> str:
    return f"{megabytes / _MB_OF_A_GB:.3g} GB"


def request_text(request: Request, partition: str) -> str:
    gpus = _counted(request.gpus, f"{request.gpu_type} GPU".strip()) if request.gpus else "no GPU"
    return (
        f"{_counted(request.nodes, 'node')} with {_counted(request.tasks, 'task')}, {_counted(request.cpus, 'CPU')}, "
        f"{_gb(request.memory)} and {gpus} each, partition {partition}, {_counted(request.minutes, 'minute')}"
    )


def nodes_text(nodes: Iterable[Node]) -> str:
    """The number of nodes of each kind: '2 nodes with 2 CPUs, 7.81 GB, 2 GPUs'."""
    kinds: dict[str, int] = {}
    unusable: dict[str, int] = {}
    for node in nodes:
        kinds[node.text] = kinds.get(node.text, 0) + 1
        unusable[node.text] = unusable.get(node.text, 0) + bool(re.search("DOWN|DRAIN|FAIL|NOT_RESPONDING", node.state))
    return "; ".join(
        f"{_counted(count, 'node')} with {text}"
        + (f" ({unusable[text]} of them down or drained)" if unusable[text] else "")
        for text, count in kinds.items()
    )
