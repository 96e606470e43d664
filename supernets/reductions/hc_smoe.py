"""HC-SMoE (arXiv 2410.08589): hierarchical clusters of the experts' mean outputs, averaged by usage."""

from collections.abc import Sequence

from supernets.expert_merging import Merging, members
from supernets.reduction import CalibratedLayer


class HcSmoe(Merging):
    """Merges experts that answer alike on average, over all tokens and not only those that chose them."""

    name = "hc-smoe"

    def clusters(self, layer: CalibratedLayer, experts: Sequence[int], count: int) -> Sequence[Sequence[int]]:
        """Agglomerative, average linkage, Euclidean distance between mean outputs."""
        import torch
        from sklearn.cluster import AgglomerativeClustering

        means_ED = layer.sample_outputs_ERD.mean(1)[list(experts)]
        labels = AgglomerativeClustering(n_clusters=count, linkage="average").fit_predict(means_ED.numpy())
        return [[experts[position] for position in one] for one in members(torch.from_numpy(labels), count)]


REDUCTION = HcSmoe()
