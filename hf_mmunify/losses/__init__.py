"""One function of tensors for each published term of a training objective."""

from .alignment import inner_words, optimal_transport, optimal_transport_distance, word_patch_alignment_loss
from .captioning import causal_language_modeling_loss
from .contrastive import contrastive_loss, matching_targets, momentum_contrastive_loss
from .distillation import knowledge_distillation_loss, soft_cross_entropy
from .gathering import gather, gather_without_gradient, pad_to_longest, rank, world_size
from .masked import masked_language_modeling_loss
from .matching import image_text_matching_loss, sample_hard_negatives
from .ranking import hinge_ranking_loss
