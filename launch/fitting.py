"""Whether the nodes of a partition can hold a job, and what of it is too much (pure functions on scontrol's text)."""

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
    """What a job asks for. Memory is in MB; `cpus`, `memory` and `gpus` are of each node."""

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
    """What a node has; `gpus` counts GPUs by type ('' where the site names none)."""

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
    """Limits of a partition; None where it has none. Memory is in MB."""

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
    """The nodes of `scontrol show node --oneliner`; lines that are no node's are left out."""
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
    """GPUs by type of a node's Gres: 'gpu:a100:4(S:0-1),gpu:2' gives {'a100': 4, '': 2}."""
    counts: dict[str, int] = {}
    for item in re.sub(r"\([^)]*\)", "", gres).split(","):
        if match := re.fullmatch(r"gpu(?::([^:]*[^:\d][^:]*))?(?::(\d+))?", item):
            counts[match[1] or ""] = counts.get(match[1] or "", 0) + int(match[2] or 1)
    return counts


def parse_partitions(text: str) -> dict[str, Partition]:
    """The partitions of `scontrol show partition --oneliner`, by name."""
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
    """What of a request is too much for every node of its partition, a sentence each, then a line that says what was asked
    and one that says what the nodes have; [] where nothing is, or where it is not known which partition it is."""
    name = request.partition or next((p.name for p in partitions.values() if p.is_default), "")
    if "," in name or not name:  # of several partitions Slurm takes the first that fits
        return []
    if name not in partitions:
        return [f"--partition {name} is not there: give one of {', '.join(sorted(partitions))}"]
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
            f"asked {_counted(request.minutes, 'minute')}, partition {name} allows {partition.minutes:g}: give --time_min {int(partition.minutes)}"
        )
    if not found:
        return []
    return [*found, f"asked: {request_text(request, name)}", f"partition {name} has: {nodes_text(every)}"]


def _per_node_excess(request: Request, partition: Partition, nodes: Sequence[Node]) -> list[str]:
    """What is more than the largest of the nodes has."""
    where = f"the largest node of partition {partition.name} has"
    cpus = int(min(max(node.cpus for node in nodes), partition.cpus or math.inf))
    memory = int(min(max(node.memory for node in nodes), partition.memory or math.inf))
    gpus = max(node.gpus_of(request.gpu_type) for node in nodes)
    # as many GPUs (or tasks) as such a node could hold with a CPU and a GB for each
    wanted = request.gpus or request.tasks
    shares = max(min(wanted, cpus, memory // _MB_OF_A_GB, gpus if request.gpus and gpus else wanted), 1)
    fewer = f" {'--gpus_per_node' if request.gpus else '--tasks_per_node'} {shares}" if shares < wanted else ""
    found = []
    if request.cpus > cpus:
        found.append(
            f"asked {_counted(request.cpus, 'CPU')} on each node, {where} {cpus}: give --cpus_per_gpu {max(cpus // shares, 1)}{fewer}"
        )
    if request.memory > memory:
        gb = max(memory // _MB_OF_A_GB // shares, 1)
        found.append(
            f"asked {_gb(request.memory)} of memory on each node, {where} {_gb(memory)}: give --mem_per_gpu_gb {gb}{fewer}"
        )
    if request.gpus > gpus:
        found.append(_gpu_excess(request, partition, nodes, gpus))
    return found


def _gpu_excess(request: Request, partition: Partition, nodes: Sequence[Node], most: int) -> str:
    kind = f"{request.gpu_type} GPU".strip()
    asked = f"asked {_counted(request.gpus, kind)} on each node"
    if most:
        return f"{asked}, the largest node of partition {partition.name} has {most}: give --gpus_per_node {most}"
    types = sorted({name for node in nodes for name in node.gpus} - {""})
    if request.gpu_type and types:
        return (
            f"{asked}, partition {partition.name} has GPUs of type {', '.join(types)}: give one of them as --gpu_type"
        )
    if request.gpu_type and any(node.gpus for node in nodes):
        return f"{asked}, the GPUs of partition {partition.name} have no type: leave out --gpu_type"
    return f"{asked}, partition {partition.name} has none: give another --partition, or train on CPUs (--gpus_per_node 0 -- --gpu False)"


def _holds(request: Request, node: Node) -> bool:
    return (
        request.cpus <= node.cpus and request.memory <= node.memory and request.gpus <= node.gpus_of(request.gpu_type)
    )


def _node_count_excess(
    request: Request, partition: Partition, every: Sequence[Node], usable: Sequence[Node], is_named: bool
) -> list[str]:
    """Whether too few nodes are there, or too few that hold all that is asked at once. `is_named` says that it is known
    already why no node does."""
    asked, where = f"asked {_counted(request.nodes, 'node')}", f"partition {partition.name}"
    if usable and request.nodes > len(usable):
        left = len(every) - len(usable)
        without = f" ({left} of {len(every)} are excluded or lack --constraint)" if left else ""
        return [f"{asked}, {where} has {len(usable)}{without}: give --nodes {len(usable)}"]
    if partition.nodes is not None and partition.nodes < request.nodes:
        return [f"{asked}, {where} allows {partition.nodes} for a job: give --nodes {partition.nodes}"]
    fitting = [node.name for node in usable if _holds(request, node)]
    if len(fitting) < request.nodes and not is_named:
        names = f" ({', '.join(fitting[:4])})" if fitting else ""
        return [
            f"{asked} with all of this on each, {where} has {len(fitting)}{names}: ask for less on each node, or for fewer nodes"
        ]
    return []


def host_names(expression: str) -> set[str]:
    """The hosts of an expression such as 'gpu[003-004,7],n1'."""
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
    """How many nodes of each kind there are: '2 nodes with 2 CPUs, 7.81 GB, 2 GPUs'."""
    kinds: dict[str, int] = {}
    away: dict[str, int] = {}
    for node in nodes:
        kinds[node.text] = kinds.get(node.text, 0) + 1
        away[node.text] = away.get(node.text, 0) + bool(re.search("DOWN|DRAIN|FAIL|NOT_RESPONDING", node.state))
    return "; ".join(
        f"{_counted(count, 'node')} with {text}" + (f" ({away[text]} of them down or drained)" if away[text] else "")
        for text, count in kinds.items()
    )
