"""SCAN's names of inputs and outputs -> ours."""

import torch


def outputs(model, inputs: dict, case: dict) -> dict[str, torch.Tensor]:
    """Every output of the case, with gradients wherever the caller lets parameters require them."""
    captions = inputs["captions"]
    mask = torch.arange(captions.shape[1]) < inputs["lengths"][:, None]  # id 0 may stand inside of a caption
    result = model(input_ids=captions, attention_mask=mask, region_features=inputs["images"], return_loss=True)
    regions, words = result.region_states, result.word_states
    scores, _ = model.model.compare(regions, torch.ones(regions.shape[:2], dtype=torch.bool), words, mask)
    torch.testing.assert_close(result.logits, scores.diagonal(), atol=1e-6, rtol=0)  # pairs are the diagonal
    return {"img_emb": regions, "cap_emb": words, "scores": scores, "loss": result.loss}
