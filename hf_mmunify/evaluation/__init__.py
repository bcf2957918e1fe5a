"""How good a model is: few-shot prompting, and metrics of answers, captions and classes. Arrays in, dict out."""

from .captioning import cider
from .classification import accuracy
from .few_shot import CAPTION_TEMPLATE, QUESTION_TEMPLATE, FewShotEvaluator, FewShotPrompt
from .vqa import exact_match, normalize_vqa_answer, vqa_accuracy
