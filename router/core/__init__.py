"""The decision, pure: no I/O, no clock, no log, no await. Stdlib and msgspec only.

Outside facts come in as frozen values (`ModelFacts` in `ollama/model.py`, `Snapshot` in `decision/snapshot.py`,
`InferenceRequest` in `payload/read.py`); `choose` in `decision/policy.py` turns them into a `Decision` with one verdict
per variant. Expected outcomes are values, not exceptions.
"""
