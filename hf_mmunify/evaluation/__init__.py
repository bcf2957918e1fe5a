"""How good a model is: retrieval, zero-shot classes, few-shot prompting; metrics of answers, captions and classes."""

from .captioning import bleu, cider, rouge_l
from .classification import accuracy, class_accuracy, clip_accuracy, top_k_accuracy
from .few_shot import CAPTION_TEMPLATE, QUESTION_TEMPLATE, FewShotEvaluator, FewShotPrompt
from .retrieval import (
    EmbeddingModel,
    MatchingModel,
    PairScorer,
    RetrievalEvaluator,
    RetrievalModel,
    TwoTowers,
    as_retrieval_model,
    recall_at_k,
)
from .vqa import exact_match, normalize_vqa_answer, vqa_accuracy
from .zero_shot import ZeroShotClassifier
