"""The kinds of GPU that a user may ask for, and what a machine with them usually has."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.job import CannotRun


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU.

    Args:
        kind: as users write it.
        memory_gb: of the GPU.
        per_node: how many the usual machine has.
        cpus, ram_gb: for each GPU, a little less than the machines that clouds offer have, so that
            what the node itself runs has room too.
        products: as NVIDIA's GPU feature discovery labels nodes (`nvidia.com/gpu.product`).
        gke: as Google's Kubernetes labels them (`cloud.google.com/gke-accelerator`).
        karpenter: as Karpenter on AWS does (`karpenter.k8s.aws/instance-gpu-name`).
    """

    kind: str
    memory_gb: int
    per_node: int
    cpus: int
    ram_gb: int
    products: tuple[str, ...] = ()
    gke: tuple[str, ...] = ()
    karpenter: str = ""


ANY = Gpu("", 0, 1, 6, 26)
"""Where no kind is named: one GPU a node finds a place anywhere."""

GPUS = {
    gpu.kind: gpu
    for gpu in (
        Gpu("H200", 141, 8, 11, 128, ("NVIDIA-H200",), ("nvidia-h200-141gb",), "h200"),
        Gpu(
            "H100",
            80,
            8,
            11,
            128,
            ("NVIDIA-H100-80GB-HBM3", "NVIDIA-H100-PCIe", "NVIDIA-H100-NVL"),
            ("nvidia-h100-80gb", "nvidia-h100-mega-80gb"),
            "h100",
        ),
        Gpu(
            "A100-80GB",
            80,
            8,
            11,
            100,
            ("NVIDIA-A100-SXM4-80GB", "NVIDIA-A100-80GB-PCIe"),
            ("nvidia-a100-80gb",),
        ),
        Gpu(
            "A100-40GB",
            40,
            8,
            11,
            72,
            ("NVIDIA-A100-SXM4-40GB", "NVIDIA-A100-PCIE-40GB"),
            ("nvidia-tesla-a100",),
        ),
        Gpu("L40S", 48, 4, 11, 80, ("NVIDIA-L40S",), (), "l40s"),
        Gpu("L4", 24, 1, 6, 26, ("NVIDIA-L4",), ("nvidia-l4",), "l4"),
        Gpu("A10G", 24, 1, 6, 26, ("NVIDIA-A10G",), (), "a10g"),
    )
}
"""By kind. A100 with 40 and 80 GB have one name with Karpenter, which cannot tell them apart."""


def gpu_of(kind: str) -> Gpu:
    """A kind of GPU by its name, in any case; `ANY` for none.

    Raises:
        CannotRun: there is no such kind here.
    """
    if not kind:
        return ANY
    found = {name.lower(): gpu for name, gpu in GPUS.items()}.get(kind.lower())
    if found is None:
        raise CannotRun(
            f"--gpu-kind {kind!r}: expected one of {', '.join(GPUS)}; for another kind leave it "
            "out, name --gpus-per-node, and add the kind to the files by hand"
        )
    return found
