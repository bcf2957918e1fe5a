"""The authors' checkpoints become transformers models, and back: one module per architecture, one engine.

```python
from hf_mmunify.conversion.flamingo import convert, export

model = convert("checkpoint.pt", "openflamingo-9b")   # any format of `readers`; exact, or a named error
state_dict = export(model)                            # the authors' names again, bit by bit
```

`engine` says what a conversion module declares, `rules` what a key map is made of, `errors` what can go wrong.
"""
