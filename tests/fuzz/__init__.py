"""A fuzzer of all files that users give to the commands: `bash tests/run.sh fuzz`.

    mutations     random changes of bytes, texts and JSON
    structured    random changes of zip archives and pickles
    cases         what a target is, and what counts as a failure
    targets       one module for each kind of file
    guard         limits and audit hook of a process that runs cases
    worker        runs cases in a process of its own
    runner        starts the workers, stops what hangs, and reports

A case follows from (seed, target, number) alone; `--seed=S --target=T --case=N` runs it again.
"""
