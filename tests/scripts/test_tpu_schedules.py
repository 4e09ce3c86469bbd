"""Instructions of an operation, in the form in which the TPU compiler writes them."""

from __future__ import annotations

from scripts.tpu_schedules import instructions, read_schedules

HEAD = "= control target key start\nLH: loop header\nLB: loop body\nLE: loop exit\n= control target key end\n\n"
OUTER_ENDS = "   0x9   : > { %p3 = scmp.ge.s32.totalorder %s7_s1, 5 /* loop exit test */ }\n"
SCHEDULE = (
    HEAD
    + """     0   :  { %s1 = inlined_call_operand.hbm [shape: f32[8,128], index: 0] }
   0x1   :  { %s2 = smov 0 }
   0x2 LB: > { %s3 = sadd.s32 1, %s2 }
   0x3   : > { %8 = dma.hbm_to_vmem [thread:$0]  /*hbm=*/%s1 /*
base_bounds: (1)
window_bounds: (1) */ }
   0x4   : > { %105 = sbr.rel (%p1) target = $region20 }
   0x5 LB: >> { %v1 = vld [vmem:[%s3] sm:$0xff] }
   0x6   :  {}
   0x7   : >> { %p2 = scmp.ge.s32.totalorder %s5_s9, 10 /* loop exit test */  ;;  %s6 = smov %s5 }
   0x8   : > { %46 = sbr.rel (!%p2) target = $region4 }
"""
    + OUTER_ENDS
    + """   0xa   :  {}
   0xb   :  { %47 = sbr.rel (!%p3) target = $region2 }
   0xc   :  { %48 = vsyncadd [#allocation2], 1 }
"""
)
"""Three instructions outside, seven in the outer loop of 5 runs, four in its inner one of 10."""


def test_loops_count_as_often_as_they_run():
    assert instructions(SCHEDULE) == 3 + 5 * (6 + 10 * 4)


def test_loops_one_after_the_other():
    lines = SCHEDULE.splitlines(keepends=True)
    first, again = "".join(lines[:-1]), "".join(lines[8:-1])
    assert instructions(first + again + lines[-1]) == 3 + 2 * 5 * (6 + 10 * 4)


def test_a_loop_of_unknown_length_counts_once():
    """As that of a copy's remainder: its counter is compared with what the program finds."""
    unknown = SCHEDULE.replace("totalorder %s5_s9, 10 /* loop exit test */", "totalorder %s5_s9, %s10_s3")
    assert instructions(unknown) == 3 + 5 * (6 + 4)


def test_no_loop():
    assert instructions(HEAD + "     0   :  { %s1 = smov 0 }\n   0x1   :  {}\n") == 2


def test_a_folder_is_read_by_operation_and_emptied(tmp_path):
    (tmp_path / "1795967755832241925-fusion.7-01-final_bundles.txt").write_text(SCHEDULE)
    (tmp_path / "1795967755832241925-fusion.7-00-schedule-analysis_final_bundles.txt").write_text("total: 9")
    (tmp_path / "179596775-softmax_product.1-01-final_bundles.txt").write_text(HEAD + "     0   :  {}\n")
    (tmp_path / "179596775-TLP-hlo.txt").write_text("HloModule")
    assert read_schedules(tmp_path) == {"fusion.7": instructions(SCHEDULE), "softmax_product.1": 1}
    assert not list(tmp_path.iterdir())
