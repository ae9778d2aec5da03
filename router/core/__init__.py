"""The decision, pure: no I/O, no clock, no log, no await. Stdlib and msgspec only.

Outside facts come in as frozen values (`catalog.ModelFacts`, `capacity.Snapshot`, `payload.InferenceRequest`);
`policy.choose` turns them into a `Decision` with one verdict per variant. Expected outcomes are values, not exceptions.
"""
