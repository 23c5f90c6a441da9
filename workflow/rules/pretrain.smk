# Experts are trained first and on their own: other methods start from them (`initialize_from:` in their recipes).
use rule train as pretrain with:
    wildcard_constraints:
        method=one_of(inputs.methods_of_role("expert")),
    priority: 12
