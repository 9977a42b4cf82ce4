"""Text that breaks text code, for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

FIXED: list[str] = [
    "",
    " ",
    "\n",
    "\n\n\n",
    "\r\n",
    "a\r\nb\rc\n",
    "\t \u3000\u00a0\u2028\n",
    "\x00",
    "a\x00b\x00",
    "👩‍👩‍👧‍👦 family, 👍🏽 thumb, 🇨🇳 flag, ❤️",
    "مرحبا بالعالم، هذا نص",
    "\u202eright to left\u202c",
    "שָׁלוֹם",
    "e\u0301cole, E\u0301COLE, n\u0303, q\u0323\u0307, q\u0307\u0323",
    "\u0301 leading mark",
    "각하 \u1100\u1161\u11a8",
    "ｶﾞｷﾞ ガ ﾊﾟ",
    "İstanbul ΣΊΣΥΦΟΣ ΟΔΥΣΣΕΥΣ Σ 𝚺",
    "ﬁne ½ ① … ﷺ ㍿ ℡ Ａｂｃ１２３，。！",
    "中文没有空格，TiDB数据库 v5.0。第二句？",
    "日本語のテキスト、カタカナ。",
    "ภาษาไทยไม่มีช่องว่าง ស្រុកខ្មែរ",
    "हिन्दी में लिखा",
    "snake_case __init__ under_ _score",
    "\ufeffbyte order mark",
    "\ufffd\ufffe\uffff",
    "\U0010ffff\U000e0041",
    "ﾞ", "゛", "\u0344", "\u0345x",
    "the cat sat on the mat " * 30,
    "一二三四五六七八九十" * 20,
    "line\n" * 40 + "other\n \nline",
]  # fmt: skip

_ALPHABET = st.one_of(
    st.characters(codec="utf-8"),
    st.sampled_from("abc ABC _09\n\r\t中文字かなカナﾞΣσİ\u0301\u0323\u1161ßﬁ…，。🙂\u200d\ufe0f"),
)

_REPEATS = st.sampled_from("ab \n一二")

texts = st.one_of(st.sampled_from(FIXED), st.text(_ALPHABET, max_size=60), st.text(_REPEATS, max_size=120))
"""Valid text of any kind."""

INVALID_BYTES: list[bytes] = [
    b"\xff",
    b"\xc0\x80",            # overlong NUL
    b"\xc1\xbf",
    b"\xe0\x80\xaf",        # overlong slash
    b"\xf0\x80\x80\xaf",
    b"\xed\xa0\x80",        # lone high surrogate
    b"\xed\xbf\xbf",        # lone low surrogate
    b"\xf4\x90\x80\x80",    # past U+10FFFF
    b"\xf8\x88\x80\x80\x80",
    b"ok then \xe4\xb8",    # cut in the middle of a character
    b"\x80 stray continuation",
    "中文".encode()[:-1],
    b"caf\xe9 in Latin-1",
]  # fmt: skip

raw_documents = st.one_of(texts.map(str.encode), st.sampled_from(INVALID_BYTES), st.binary(max_size=12))
"""Documents as bytes, some of them not UTF-8."""
