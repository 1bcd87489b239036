"""What the commands train, evaluate, infer and plan have in common: arguments, gin and errors.

| module | content |
| --- | --- |
| `common` | parses the command line and configures gin |
| `flags` | the flags, and `--help` before anything large is imported |
| `errors` | a user's mistakes as sentences, and exit codes |
| `gin_files` | finds and reads gin files, with old names as new ones |
| `gin_dynamic` | reads the names of files with dynamic registration |
| `gin_lint` | checks gin files and overrides before anything is compiled |
| `gin_registry` | the classes and functions that gin can configure |
| `compilation_cache` | keeps compiled programs |
| `train_command`, `evaluate_command`, `infer_command` | what `ofa_jax.train` and so on run |
| `training_run` | trains a run, with what every command that trains does around the loop |
| `plan_command` | the command line of `ofa_jax.plan` |
| `convert_command` | the command line of `ofa_jax.convert` |
| `convert_inputs` | the checkpoints that it reads |
"""
