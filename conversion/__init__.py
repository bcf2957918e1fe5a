"""The authors' checkpoints become transformers models, and back: one module per architecture, one engine.

```python
from hf_mmunify.conversion.flamingo import convert, export

model = convert("checkpoint.pt", "OpenFlamingo-9B-vitl-mpt7b")  # any format of `readers`; exact, or a named error
state_dict = export(model)  # the authors' names again, bit by bit
```

`declarations` says what a conversion module holds, `rules` what a key map is made of, `errors` what can go wrong.
"""
