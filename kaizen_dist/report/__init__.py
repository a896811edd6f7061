"""What a run's folder says, for people: a terminal table and one self-contained page.

In come run folders (config.yaml, results.json, events.jsonl), out go a table and a
report.html. Nothing here touches a model, an image or a rank.
"""
