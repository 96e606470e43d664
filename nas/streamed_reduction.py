"""`nas.expert_reduction` for models that do not fit into memory: one decoder layer at a time."""

from __future__ import annotations

from functools import partial

from nas.expert_reduction import Reduced, ReductionRequest, check_inputs, provenance_of, reduced_space, stock_layout
from nas.expert_stage import BATCH_SIZE, require_own, stored_statistics, stream_experts
from nas.model_card import reduction_card
from nas.tuning import open_task
from supernets.checkpoint import load_tokenizer, write_companions
from supernets.evaluation import Quality
from supernets.expert_bank import MoeLayer, check_router
from supernets.layer_stream import LayerStream, streamed_quality
from supernets.staging import staged_folder
from supernets.streamed_network import OnStage, write_streamed
from supernets.task import VALIDATION, Task


def reduce_streamed(request: ReductionRequest, on_stage: OnStage | None = None) -> Reduced:
    """What `nas.expert_reduction.reduce_checkpoint` writes, without repair, from one layer in memory at a time.

    Judging takes the hidden states of the validation text as well.

    Raises:
        ValueError: as there; a repair is asked for, or the model is not a folder.
        VerificationError: read again layer by layer, the checkpoint computes something else; nothing is left behind.
    """
    if request.repair is not None:
        raise ValueError(
            f"repair {request.repair} trains the model as a whole, of which --stream holds one layer; leave out one of "
            "the two"
        )
    stream = stream_experts(request.model)
    if request.task is None:
        text, tokenizer = None, load_tokenizer(request.model)
    else:
        text, tokenizer = open_task(request.task, request.model)
    statistics = None if request.statistics is None else stored_statistics(request.statistics, stream.model)
    supernet, architecture, experts = reduced_space(request, stream.model, statistics)
    before = supernet.count_parameters(supernet.space.decode(supernet.space.largest))
    layout = stock_layout(supernet, architecture)

    def check(layer: MoeLayer) -> None:
        check_router(layer)
        if statistics is not None and request.statistics is not None:
            require_own(layer, statistics, request.statistics)

    quality = {} if text is None else {"before": _judge(stream, text, "judge the full model", on_stage)}
    with staged_folder(request.folder) as staged:
        network = write_streamed(
            stream,
            supernet,
            architecture,
            layout,
            staged,
            check_inputs=check_inputs(supernet.config, None),
            check_layer=check,
            on_stage=on_stage,
        )
        if text is not None:
            written = LayerStream(staged, network_class=type(network))
            quality["reduced"] = _judge(written, text, "judge the reduced model", on_stage)
        parameters = sum(parameter.numel() for parameter in network.parameters())
        provenance = provenance_of(request, supernet, architecture, parameters, quality) | {"repair_losses": ()}
        texts = {"README.md": reduction_card(provenance), **supernet.side_files(architecture)}
        write_companions(staged, tokenizer, texts, {**provenance, "layout": layout})
    return Reduced(
        folder=request.folder, layout=layout, experts=experts, parameters=(before, parameters), quality=quality
    )


def _judge(stream: LayerStream, text: Task, stage: str, on_stage: OnStage | None) -> Quality:
    on_layer = partial(on_stage, stage) if on_stage else None
    return streamed_quality(stream, text, VALIDATION, batch_size=BATCH_SIZE, on_layer=on_layer)
