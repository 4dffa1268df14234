#!/bin/sh
# sparse 0.6.4 (Debian 12: 0.6.4-3): one line that its parser does not know makes it say
# nothing about the rest of the file, and it ends with status 0 all the same. A name that is
# not declared does not do that. With -Wsparse-error the status is 1 in each case, also for
# a warning alone.
# Guess before the first run: an error gives a status other than 0; other functions of the
# file are looked at.
# Newer C in a header (__typeof_unqual__ is what Linux 7.3 has) thus switches all checks off
# without a sign of it in the status.
set -eu
. "$(dirname "$0")/fetch"
fetch sparse 0.6.4-3
sparse=$root/usr/bin/sparse

cast='static int __attribute__((noderef, address_space(1))) *p;
static int g(void);
static int g(void) { return *(int *)p; }'
printf '%s\n' "$cast" >warn.c
printf 'static int n(void);\nstatic int n(void) { return nowhere; }\n%s\n' "$cast" >name.c
printf 'static int x;\nstatic __typeof_unqual__(x) y;\n%s\n' "$cast" >parse.c

expect "a cast that drops an address space" 0 'removes address space' "$sparse" warn.c
expect "the same below a name not declared" 0 'removes address space' "$sparse" name.c
expect "the same below a line that does not parse: an error" 0 'error: Expected ; at end' "$sparse" parse.c
expect "  ... and nothing about the cast" 0 '!removes address space' "$sparse" parse.c
expect "-Wsparse-error, a warning alone" 1 'removes address space' "$sparse" -Wsparse-error warn.c
