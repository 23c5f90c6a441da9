"""DRAMoE without RGAT: the attention router (DCAR) in joint TRADES training; the difference is in the recipe."""

from moat.methods.pgd_at_moe import PgdAtMoe

METHOD = PgdAtMoe
