"""Accesses to the stack are counted in the innermost loops, not around them."""

import pytest

from .sass import count_in_loops

CODE = """
        STL [R1+0x4], R2 ;
.L_x_1:
        LDL.LU R3, [R1] ;
.L_x_2:
        {inner}
   @!P5 BRA `(.L_x_2) ;
    @P0 BRA `(.L_x_3) ;
        BRA `(.L_x_1) ;
.L_x_3:
        LDL.LU R4, [R1+0x4] ;
.L_x_4:
        BRA `(.L_x_4);
"""


@pytest.mark.parametrize(
    ("inner", "count"), [("FFMA R4, R5, R6, R4 ;", 0), ("STL [R1], R3 ;", 1), ("LDL R3, [R1] ;", 1)]
)
def test_stack_accesses_in_loops(inner, count) -> None:
    assert count_in_loops(CODE.format(inner=inner)) == count
