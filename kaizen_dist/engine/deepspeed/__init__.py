"""DeepSpeed as an engine: `engine` trains, `settings` are its configuration made from ours,
`files` what it saves, `library` how it is loaded."""
