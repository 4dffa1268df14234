#!/bin/sh
# kernel-doc of Linux 7.3 (Debian: linux-source-7.3 7.3.4-1~bpo13+1), a Python program now:
# it says every warning twice, whatever it writes, and -Werror counts it twice. The form is
# another one than before, "Warning: FILE:LINE TEXT" without a colon behind the line, so what
# looks for FILE:LINE: finds none. The line is that of the prototype; kernel-doc of Linux 6.12,
# in Perl, tells the one after it.
# Guess before the first run: as in 6.12, each warning once, "FILE:LINE: warning: TEXT".
# Downloads 160 MB.
set -eu
. "$(dirname "$0")/fetch"
fetch linux-source-7.3 7.3.4-1~bpo13+1 trixie-backports
tar -xJf "$root/usr/src/linux-source-7.3.tar.xz" linux-source-7.3/tools/docs linux-source-7.3/tools/lib/python
doc() { python3 linux-source-7.3/tools/docs/kernel-doc "$@" a.c; }
how_often() { doc "$@" 2>&1 >man | grep -c "'b' not described"; }

printf '%s\n' '/**' ' * f - Do it' ' * @a: first' ' */' 'int f(int a, int b)' '{' '	return a + b;' '}' >a.c

expect "one parameter is not described" 0 "^Warning: a.c:5 function parameter 'b' not described in 'f'" doc -none
expect "  ... said so often" 0 "^2$" how_often -none
expect "  ... with -man" 0 "^2$" how_often -man
expect "-Werror, the same" 3 '^2 warnings as errors' doc -none -Werror
