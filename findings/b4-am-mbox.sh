#!/bin/sh
# b4 0.12.0 (Debian 12: 0.12.0-2), `b4 am -m` on a file as git format-patch writes it:
# - without --thread it has no Message-ID: b4 counts the patch ("Total patches: 1"), then
#   finds none, writes no file, and ends with status 0;
# - with --thread it works;
# - with --thread and an author whose From line is so long that git folds it: ValueError.
# - with --no-encode-email-headers as well, which leaves the name as it is, it works.
# Guess before the first run: a Message-ID is made up or its lack is an error; folding is
# of no matter, since RFC 5322 asks for it.
set -eu
. "$(dirname "$0")/fetch"
fetch b4 0.12.0-2
for p in python3-dkim=1.1.4-1 python3-dnspython=2.3.0-1+deb12u1 python3-requests=2.28.1+dfsg-1 \
	python3-urllib3=1.26.12-1+deb12u4 python3-idna=3.3-1+deb12u1 python3-certifi=2022.9.24-1 \
	python3-chardet=5.1.0+dfsg-2 python3-charset-normalizer=3.0.1-2 python3-patatt=0.6.3-1; do
	fetch "${p%%=*}" "${p#*=}"
done
export HOME="$tmp" PYTHONPATH="$root/usr/lib/python3/dist-packages" GIT_CONFIG_NOSYSTEM=1
b4() { /usr/bin/python3 "$root/usr/bin/b4" --no-interactive am -o "$tmp/am" -m "$1"; }

mkdir am
git init -q repo
cd repo
git config user.email author@example.org
git config user.name 'A Name'
echo 1 >f && git add f && git commit -q -m base
echo 2 >f && git commit -q -a -m 'f: Say two'
git format-patch -q -1 -o ../plain
git format-patch -q -1 --thread -o ../thread
git config user.name 'A Name So Löng That Git Cannot Leave It On One Line Of A Header'
git commit -q --amend --reset-author --no-edit
git format-patch -q -1 --thread --no-encode-email-headers -o ../unencoded
git format-patch -q -1 --thread -o ../folded

expect "no Message-ID" 0 'Could not find any patches' b4 ../plain/0001-f-Say-two.patch
[ -z "$(ls ../am)" ] || { echo "$me: it wrote a file" >&2; exit 1; }
expect "--thread" 0 'git am .*\.mbx' b4 ../thread/0001-f-Say-two.patch
expect "--thread, a folded From line" 1 'ValueError: Header values may not contain linefeed' \
	b4 ../folded/0001-f-Say-two.patch
expect "the same with --no-encode-email-headers" 0 'git am .*\.mbx' \
	b4 ../unencoded/0001-f-Say-two.patch
