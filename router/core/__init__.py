"""The decision, pure: no I/O, no clock, no log, no await. Stdlib and msgspec only.

Facts from outside are frozen values (`ModelFacts` in `ollama/model.py`, `Snapshot` in `decision/snapshot.py`,
`InferenceRequest` in `payload/read.py`). From them `choose` in `decision/policy.py` makes a `Decision` with one verdict
per variant. Expected outcomes are values, not exceptions.
"""
