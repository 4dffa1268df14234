// SPDX-License-Identifier: GPL-2.0
/*
 * Makes small breakages, called mutants, of a C file in the kernel's style.
 *
 *   mutate FILE TAG          <RANGES   lists the chosen ones, one a line:
 *                                      ROUND|NAME|KEY|LINE|WHAT
 *   mutate FILE TAG all      <RANGES   lists all that there can be
 *   mutate FILE TAG NAME     <RANGES   prints the file with this one
 *
 * RANGES are lines "FIRST COUNT": where the file may be changed. NAME is
 * TAG:FUNCTION:RULE:N, the Nth place of this kind in the function. KEY is a hash of
 * the function's text and of the change, so it stays the same until one of these
 * changes. Which ones of a function are chosen depends on nothing outside of it.
 */
#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_EDITS 8
/* A function gets one mutant for so many candidates, and no more than MAX_CHOSEN */
#define PER_CHOSEN 25
#define MAX_CHOSEN 4

enum kind { IDENT, NUMBER, STRING, PUNCT };

struct token {
	enum kind kind;
	size_t at, len;
	int line;
	int match;	/* of a bracket: the other one */
	int added;
};

struct edit {
	size_t at, len;
	char *text;
};

struct mutant {
	const char *rule;
	int n, line, func;
	struct edit edit[MAX_EDITS];
	int edits;
	char what[100];
	uint64_t key, rank;
	int round;
};

struct func {
	char name[80];
	int open, close;	/* tokens of its braces */
	int begin;		/* token that its declaration begins with */
	enum { VOID, NUMERIC, BOOLEAN, OTHER } returns;
};

static char *src;
static size_t size;
static struct token *tok;
static int ntok;
static struct func *func;
static int nfunc;
static struct mutant *mut;
static int nmut;
static char *added_line;
static int nlines;

static void die(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	fputs("mutate: ", stderr);
	vfprintf(stderr, fmt, ap);
	fputc('\n', stderr);
	va_end(ap);
	exit(2);
}

static void *grow(void *p, int n, size_t each)
{
	/* In steps of powers of two */
	if (n & (n - 1))
		return p;
	p = realloc(p, (n ? 2 * (size_t)n : 1) * each);
	if (!p)
		die("out of memory");
	return p;
}

static char *text_of(size_t at, size_t len)
{
	char *s = malloc(len + 1);

	if (!s)
		die("out of memory");
	memcpy(s, src + at, len);
	s[len] = 0;
	return s;
}

static int is(int t, const char *s)
{
	return t >= 0 && t < ntok && tok[t].len == strlen(s) &&
	       !memcmp(src + tok[t].at, s, tok[t].len);
}

static int is_one_of(int t, const char *const *list)
{
	for (; *list; list++)
		if (is(t, *list))
			return 1;
	return 0;
}

static void read_file(const char *name)
{
	FILE *f = fopen(name, "r");
	size_t n;

	if (!f)
		die("%s: %s", name, strerror(errno));
	src = malloc(1 << 22);
	if (!src)
		die("out of memory");
	while ((n = fread(src + size, 1, (1 << 22) - 1 - size, f)))
		size += n;
	if (!feof(f))
		die("%s: too large, or not readable", name);
	fclose(f);
	src[size] = 0;
	for (n = 0; n < size; n++)
		nlines += src[n] == '\n';
	added_line = calloc(nlines + 2, 1);
	if (!added_line)
		die("out of memory");
}

static void read_ranges(void)
{
	int first, count;

	while (scanf("%d %d", &first, &count) == 2)
		for (; count > 0; count--, first++)
			if (first > 0 && first <= nlines)
				added_line[first] = 1;
	if (!feof(stdin))
		die("stdin: not lines of FIRST COUNT");
}

static void tokenize(void)
{
	static const char *const ops[] = {
		"...", "<<=", ">>=", "->", "++", "--", "&&", "||", "==", "!=", "<=",
		">=", "<<", ">>", "+=", "-=", "*=", "/=", "%=", "&=", "|=", "^=", "?:",
		NULL
	};
	int stack[512], depth = 0, line = 1, fresh = 1;
	size_t i = 0, start;

	while (i < size) {
		enum kind kind;
		char c = src[i];

		if (c == '\n') {
			line++;
			fresh = 1;
			i++;
			continue;
		}
		if (isspace((unsigned char)c)) {
			i++;
			continue;
		}
		if (c == '#' && fresh) {
			for (; i < size && src[i] != '\n'; i++)
				if (src[i] == '\\' && src[i + 1] == '\n') {
					i++;
					line++;
				}
			continue;
		}
		fresh = 0;
		if (c == '/' && src[i + 1] == '*') {
			for (i += 2; i < size; i++) {
				if (src[i] == '\n')
					line++;
				if (src[i] == '*' && src[i + 1] == '/')
					break;
			}
			i += 2;
			continue;
		}
		if (c == '/' && src[i + 1] == '/') {
			while (i < size && src[i] != '\n')
				i++;
			continue;
		}
		start = i;
		if (isalpha((unsigned char)c) || c == '_') {
			kind = IDENT;
			while (isalnum((unsigned char)src[i]) || src[i] == '_')
				i++;
		} else if (isdigit((unsigned char)c)) {
			kind = NUMBER;
			while (isalnum((unsigned char)src[i]))
				i++;
		} else if (c == '"' || c == '\'') {
			kind = STRING;
			for (i++; i < size && src[i] != c; i++)
				if (src[i] == '\\')
					i++;
			i++;
		} else {
			int o;

			kind = PUNCT;
			i++;
			for (o = 0; ops[o]; o++)
				if (!strncmp(src + start, ops[o], strlen(ops[o]))) {
					i = start + strlen(ops[o]);
					break;
				}
		}
		tok = grow(tok, ntok, sizeof(*tok));
		tok[ntok] = (struct token){ .kind = kind, .at = start, .len = i - start,
					    .line = line, .match = -1,
					    .added = added_line[line] };
		if (kind == PUNCT && strchr("([{", c)) {
			if (depth == 512)
				die("line %d: nested too deeply", line);
			stack[depth++] = ntok;
		} else if (kind == PUNCT && strchr(")]}", c)) {
			if (!depth)
				die("line %d: no match for '%c'", line, c);
			tok[ntok].match = stack[--depth];
			tok[stack[depth]].match = ntok;
		}
		ntok++;
	}
}

static void find_functions(void)
{
	int t, begin = 0;

	for (t = 0; t < ntok; t++) {
		if (is(t, ";")) {
			begin = t + 1;
			continue;
		}
		if (is(t, "{") && t && is(t - 1, ")")) {
			struct func f = { .open = t, .close = tok[t].match, .begin = begin };
			int name = tok[t - 1].match - 1, i;

			/* __releases(), __must_hold() and the like stand behind */
			while (name > begin && !strncmp(src + tok[name].at, "__", 2) &&
			       is(name - 1, ")"))
				name = tok[name - 1].match - 1;
			if (name > begin && tok[name].kind == IDENT) {
				snprintf(f.name, sizeof(f.name), "%.*s", (int)tok[name].len,
					 src + tok[name].at);
				f.returns = NUMERIC;
				for (i = begin; i < name; i++)
					if (is(i, "void"))
						f.returns = VOID;
					else if (is(i, "bool"))
						f.returns = BOOLEAN;
				if (is(name - 1, "*"))
					f.returns = OTHER;
				func = grow(func, nfunc, sizeof(*func));
				func[nfunc++] = f;
			}
		}
		if (tok[t].kind == PUNCT && strchr("([{", src[tok[t].at]) && tok[t].match > t) {
			t = tok[t].match;
			if (is(t, "}"))
				begin = t + 1;
		}
	}
}

/* Begin a mutant of a rule in a function; what is said is the text of tokens a to b */
static struct mutant *new_mutant(const char *rule, int f, int a, int b)
{
	struct mutant *m;
	size_t i, o = 0;

	mut = grow(mut, nmut, sizeof(*mut));
	m = &mut[nmut];
	memset(m, 0, sizeof(*m));
	m->rule = rule;
	m->func = f;
	m->line = tok[a].line;
	for (i = tok[a].at; i < tok[b].at + tok[b].len && o < sizeof(m->what) - 1; i++) {
		char c = isspace((unsigned char)src[i]) || src[i] == '|' ? ' ' : src[i];

		if (src[i] == '|')
			c = '!';	/* the separator of the list */
		if (c != ' ' || (o && m->what[o - 1] != ' '))
			m->what[o++] = c;
	}
	return m;
}

/* Replace tokens a to b; says if they are all in lines that may be changed */
static int replace(struct mutant *m, int a, int b, const char *fmt, ...)
{
	char *s = malloc(4096);
	va_list ap;
	int t, n;

	if (!s || m->edits == MAX_EDITS)
		return 0;
	for (t = a; t <= b; t++)
		if (!tok[t].added)
			return 0;
	va_start(ap, fmt);
	n = vsnprintf(s, 3072, fmt, ap);
	va_end(ap);
	if (n >= 3072)
		return 0;
	/* As many lines as before: the number of a line is part of a WARN() */
	n = tok[b].line - tok[a].line;
	for (t = 0; s[t]; t++)
		n -= s[t] == '\n';
	for (; n > 0; n--)
		strcat(s, "\n");
	m->edit[m->edits++] = (struct edit){ .at = tok[a].at, .text = s,
		.len = tok[b].at + tok[b].len - tok[a].at };
	return 1;
}

static void done(struct mutant *m)
{
	int i;

	m->n = 1;
	for (i = 0; i < nmut; i++)
		if (mut[i].func == m->func && !strcmp(mut[i].rule, m->rule))
			m->n++;
	nmut++;
}

/* What kind of function a call is of; NULL: dropping it would prove nothing */
static const char *class_of(int t)
{
	char s[80];

	snprintf(s, sizeof(s), "%.*s", (int)tok[t].len, src + tok[t].at);
#define HAS(x) strstr(s, x)
#define BEGINS(x) (!strncmp(s, x, strlen(x)))
	if (BEGINS("lockdep") || BEGINS("might_") || BEGINS("WARN") || BEGINS("pr_") ||
	    BEGINS("dev_") || BEGINS("cond_resched") || BEGINS("lock_map") ||
	    BEGINS("smp_") || BEGINS("INIT_DELAYED_WORK_ONSTACK") ||
	    BEGINS("BUILD_BUG") || BEGINS("mutex_destroy") || BEGINS("mutex_init") ||
	    BEGINS("spin_lock_init") || BEGINS("trace_") || BEGINS("INIT_LIST_HEAD") ||
	    HAS("work_on_stack"))
		return NULL;
	if (HAS("unlock") || BEGINS("up_read") || BEGINS("up_write"))
		return "unlock";
	if (BEGINS("mutex_lock") || BEGINS("spin_lock") || BEGINS("xa_lock") ||
	    BEGINS("down_"))
		return "lock";
	if (BEGINS("wake_up") || BEGINS("complete"))
		return "wake";
	if (HAS("_put") || HAS("put_") || BEGINS("refcount_dec") || BEGINS("fput"))
		return "put";
	if (HAS("_get") || HAS("get_") || BEGINS("refcount_inc"))
		return "get";
	if (HAS("free") || HAS("destroy") || HAS("abort") || HAS("release"))
		return "free";
	if (BEGINS("list_") || BEGINS("xa_") || BEGINS("__xa_") || BEGINS("interval_tree"))
		return "list";
	return "call";
#undef HAS
#undef BEGINS
}

static const char *const keywords[] = {
	"if", "else", "for", "while", "do", "switch", "return", "goto", "break",
	"continue", "case", "default", "sizeof", "struct", "const", "static", "int",
	"bool", "unsigned", "long", "size_t", "void", "u32", "u64", NULL
};

static int is_statement_start(int t, int open)
{
	int p = t - 1;

	if (p == open || is(p, ";") || is(p, "{") || is(p, "}") || is(p, "else") ||
	    is(p, "do"))
		return 1;
	if (is(p, ":"))
		return !is(p - 2, "?") && (is(p - 2, ";") || is(p - 2, "}") ||
					   is(p - 2, "{") || is(p - 2, "case"));
	if (is(p, ")")) {
		int k = tok[p].match - 1;

		return is(k, "if") || is(k, "while") || is(k, "for") ||
		       (k > 0 && tok[k].kind == IDENT &&
			strstr(text_of(tok[k].at, tok[k].len), "for_each"));
	}
	return 0;
}

/* The last token of the expression statement at t, before its ';', or -1 */
static int statement_end(int t, int close)
{
	if (tok[t].kind != IDENT && !is(t, "*") && !is(t, "++") && !is(t, "--"))
		return -1;
	if (is_one_of(t, keywords))
		return -1;
	for (; t < close; t++) {
		if (is(t, ";"))
			return t - 1;
		if (is(t, "{") || is(t, "}") || is(t, ":"))
			return -1;
		if (is(t, "(") || is(t, "["))
			t = tok[t].match;
	}
	return -1;
}

/* A statement that is nothing but a call of an ordinary function, or of a callback */
static int is_call(int t, int end)
{
	int p = t;

	while (p < end && (tok[p].kind == IDENT || is(p, "->") || is(p, ".")))
		p++;
	return p > t && is(p, "(") && tok[p].match == end ? p - 1 : -1;
}

/* An assignment: the token of its operator, or -1 */
static int is_store(int t, int end)
{
	static const char *const ops[] = {
		"=", "+=", "-=", "|=", "&=", "++", "--", NULL
	};
	int p;

	for (p = t; p <= end; p++) {
		if (is_one_of(p, ops))
			return p;
		if (is(p, "(") || is(p, "["))
			p = tok[p].match;
	}
	return -1;
}

/* To something that lasts; and not a declaration */
static int is_lasting_store(int t, int end)
{
	int op = is_store(t, end), p;

	if (op < 0)
		return 0;
	for (p = t; p <= end && (p < op || op == t); p++) {
		if (tok[p].kind == IDENT && p > t && tok[p - 1].kind == IDENT)
			return 0;
		if (is(p, "->") || is(p, ".") || (is(p, "*") && p == t))
			return 1;
	}
	return 0;
}

/* The end of the statement at t, which is the token of its ';' or '}' */
static int whole_statement(int t)
{
	if (is(t, "{"))
		return tok[t].match;
	for (; t < ntok; t++) {
		if (is(t, ";"))
			return t;
		if (is(t, "(") || is(t, "[") || is(t, "{"))
			t = tok[t].match;
	}
	return -1;
}

/* Whether what an if guards ends in a jump, and thus is a check */
static int jumps(int t)
{
	int end = whole_statement(t), p;

	if (end < 0)
		return 0;
	for (p = is(t, "{") ? end - 1 : end; p >= t; p--) {
		if (p < end && is(p, "}"))
			return 0;
		if (is(p, "return") || is(p, "goto") || is(p, "break") || is(p, "continue"))
			return 1;
		if (is(p, ";") && p != end && p != end - 1)
			return 0;
	}
	return 0;
}

static void mutate_call(int f, int t, int end, int name)
{
	const char *class = class_of(name);
	struct mutant *m;
	int p;

	if (!class)
		return;
	if (strcmp(class, "lock")) {
		m = new_mutant(class, f, t, end);
		if (replace(m, t, end, "(void)0"))
			done(m);
		return;
	}

	/* The lock, and all unlocks of it: the rule is that it is not needed */
	m = new_mutant("lock", f, t, end);
	for (p = func[f].open; p < func[f].close; p++) {
		const char *c;
		int e, n;

		if (!is_statement_start(p, func[f].open))
			continue;
		e = statement_end(p, func[f].close);
		n = e < 0 ? -1 : is_call(p, e);
		if (n < 0)
			continue;
		c = class_of(n);
		if (!c || !strstr(c, "lock"))
			continue;
		if (strcmp(text_of(tok[n + 1].at, tok[e].at - tok[n + 1].at),
			   text_of(tok[name + 1].at, tok[end].at - tok[name + 1].at)))
			continue;
		/* Only once for each of them */
		if (!strcmp(c, "lock") && p < t)
			return;
		if (!replace(m, p, e, "(void)0"))
			return;
	}
	if (m->edits > 1)
		done(m);
}

/* The statement at t and the one after it change places */
static void mutate_swap(int f, int t, int end)
{
	int t2 = end + 2, end2 = statement_end(t2, func[f].close);
	int n1, n2, s1, s2;
	struct mutant *m;

	if (end2 < 0)
		return;
	n1 = is_call(t, end);
	n2 = is_call(t2, end2);
	s1 = is_lasting_store(t, end);
	s2 = is_lasting_store(t2, end2);
	if ((n1 < 0 && n2 < 0) || (n1 < 0 && !s1) || (n2 < 0 && !s2))
		return;
	if ((n1 >= 0 && !class_of(n1)) || (n2 >= 0 && !class_of(n2)))
		return;
	m = new_mutant("swap", f, t, end2);
	if (replace(m, t, end, "%s", text_of(tok[t2].at,
					     tok[end2].at + tok[end2].len - tok[t2].at)) &&
	    replace(m, t2, end2, "%s", text_of(tok[t].at,
					       tok[end].at + tok[end].len - tok[t].at)))
		done(m);
}

static void mutate_if(int f, int t)
{
	int open = t + 1, close = tok[open].match;
	int jump = jumps(close + 1);
	char *cond = text_of(tok[open].at, tok[close].at + 1 - tok[open].at);
	struct mutant *m;

	if (jump) {
		m = new_mutant("check", f, t, close);
		if (replace(m, open, close, "(%s && 0)", cond))
			done(m);
	}
	m = new_mutant("negate", f, t, close);
	if (replace(m, open, close, "(!%s)", cond))
		done(m);
	if (!jump) {
		m = new_mutant("always", f, t, close);
		if (replace(m, open, close, "(%s || 1)", cond))
			done(m);
	}
}

/* The label after the one that a goto names: one step of cleaning up is left out */
static void mutate_goto(int f, int t)
{
	int p, found = 0;
	struct mutant *m;

	for (p = t; p < func[f].close; p++) {
		if (tok[p].kind != IDENT || !is(p + 1, ":") ||
		    !is_statement_start(p, func[f].open))
			continue;
		if (found) {
			m = new_mutant("unwind", f, t, t + 1);
			if (replace(m, t, t + 1, "goto %s", text_of(tok[p].at, tok[p].len)))
				done(m);
			return;
		}
		found = tok[p].len == tok[t + 1].len &&
			!memcmp(src + tok[p].at, src + tok[t + 1].at, tok[p].len);
	}
}

/* In what a WARN_ON() looks at: it is never so, whatever it says */
static int in_warn(int f, int t)
{
	int p;

	for (p = func[f].open; p < t; p++)
		if (is(p, "(") && tok[p].match > t && tok[p - 1].kind == IDENT &&
		    tok[p - 1].len >= 7 && !memcmp(src + tok[p - 1].at, "WARN_ON", 7))
			return 1;
	return 0;
}

static void mutate_token(int f, int t)
{
	struct mutant *m;

	if (in_warn(f, t))
		return;

	if (tok[t].kind == IDENT && tok[t].len > 2 && src[tok[t].at] == 'E' &&
	    isupper((unsigned char)src[tok[t].at + 1]) && is(t - 1, "-") &&
	    !is(t - 2, "==")) {
		m = new_mutant("errno", f, t - 1, t);
		if (replace(m, t, t, "%s", is(t, "EINVAL") ? "ENOENT" : "EINVAL"))
			done(m);
	} else if (is(t, "true") || is(t, "false")) {
		m = new_mutant("bool", f, t - 2 > func[f].open ? t - 2 : t, t);
		if (replace(m, t, t, is(t, "true") ? "false" : "true"))
			done(m);
	} else if (is(t, "&&") || is(t, "||")) {
		m = new_mutant("logic", f, t - 1, t + 1);
		if (replace(m, t, t, is(t, "&&") ? "||" : "&&"))
			done(m);
	} else if (is(t, "<") || is(t, ">") || is(t, "<=") || is(t, ">=")) {
		m = new_mutant("bound", f, t - 1, t + 1);
		if (replace(m, t, t, is(t, "<") ? "<=" : is(t, "<=") ? "<" :
			    is(t, ">") ? ">=" : ">"))
			done(m);
	} else if ((is(t, "+") || is(t, "-")) &&
		   (tok[t - 1].kind == IDENT || tok[t - 1].kind == NUMBER ||
		    is(t - 1, ")")) && !is(t - 1, "return")) {
		m = new_mutant("arith", f, t - 1, t + 1);
		if (replace(m, t, t, is(t, "+") ? "-" : "+"))
			done(m);
	} else if (is(t, "|") && tok[t + 1].kind == IDENT &&
		   isupper((unsigned char)src[tok[t + 1].at])) {
		m = new_mutant("flag", f, t, t + 1);
		if (replace(m, t, t + 1, " "))
			done(m);
	}
}

static void mutate_early(int f)
{
	static const char *const value[] = { "", " 0", " 0", NULL };
	int open = func[f].open;
	struct mutant *m;

	if (!value[func[f].returns])
		return;
	m = new_mutant("early", f, func[f].begin, open - 1);
	if (replace(m, open, open, "{ if (1) return%s;", value[func[f].returns]))
		done(m);
	if (func[f].returns != BOOLEAN)
		return;
	m = new_mutant("early", f, func[f].begin, open - 1);
	if (replace(m, open, open, "{ if (1) return 1;"))
		done(m);
}

static void mutate_function(int f)
{
	int open = func[f].open, close = func[f].close, t;

	mutate_early(f);
	for (t = open + 1; t < close; t++) {
		int end, name;

		mutate_token(f, t);
		if (!is_statement_start(t, open))
			continue;
		if (is(t, "if") || (is(t, "else") && is(t + 1, "if")))
			mutate_if(f, is(t, "if") ? t : t + 1);
		if (is(t, "goto"))
			mutate_goto(f, t);
		end = statement_end(t, close);
		if (end < 0)
			continue;
		name = is_call(t, end);
		if (name >= 0) {
			mutate_call(f, t, end, name);
			mutate_swap(f, t, end);
		} else if (is_lasting_store(t, end)) {
			struct mutant *m = new_mutant("store", f, t, end);

			if (replace(m, t, end, "(void)0"))
				done(m);
			mutate_swap(f, t, end);
		}
	}
}

static uint64_t hash(uint64_t h, const void *p, size_t len)
{
	const unsigned char *c = p;

	/* FNV-1a */
	while (len--)
		h = (h ^ *c++) * 0x100000001b3ull;
	return h;
}

/* How often a rule is chosen, next to the others */
static int weight(const char *rule)
{
	static const struct {
		const char *rule;
		int weight;
	} weights[] = {
		{ "put", 6 }, { "get", 9 }, { "wake", 9 }, { "check", 3 }, { "unlock", 2 },
		{ "lock", 4 }, { "free", 4 }, { "list", 4 }, { "call", 4 }, { "store", 2 },
		{ "swap", 2 }, { "unwind", 20 }, { "errno", 2 }, { "early", 2 },
		{ "bound", 6 }, { "arith", 3 }, { "flag", 12 }, { "logic", 3 },
		{ "bool", 3 }, { "negate", 1 }, { "always", 2 },
	};
	size_t i;

	for (i = 0; i < sizeof(weights) / sizeof(weights[0]); i++)
		if (!strcmp(weights[i].rule, rule))
			return weights[i].weight;
	return 1;
}

static void make_keys(void)
{
	int i, e;

	for (i = 0; i < nmut; i++) {
		struct mutant *m = &mut[i];
		size_t begin = tok[func[m->func].begin].at;
		uint64_t h = 0xcbf29ce484222325ull;

		h = hash(h, func[m->func].name, strlen(func[m->func].name));
		h = hash(h, m->rule, strlen(m->rule));
		h = hash(h, &m->n, sizeof(m->n));
		/* Such a hash mixes its last bytes badly */
		m->rank = (h ^ h >> 31) * 0x9e3779b97f4a7c15ull >> 11;
		m->rank /= weight(m->rule);
		h = hash(h, src + begin, tok[func[m->func].close].at - begin);
		for (e = 0; e < m->edits; e++) {
			size_t at = m->edit[e].at - begin;

			h = hash(h, &at, sizeof(at));
			h = hash(h, m->edit[e].text, strlen(m->edit[e].text));
		}
		m->key = h;
	}
}

/* In each function the lowest ranks, each of another rule */
static void choose(void)
{
	int f, i, j;

	for (f = 0; f < nfunc; f++) {
		int count = 0, want, round;

		for (i = 0; i < nmut; i++)
			count += mut[i].func == f;
		/* One that only a small change was made to has few */
		want = (count + PER_CHOSEN - 1) / PER_CHOSEN;
		if (want > MAX_CHOSEN)
			want = MAX_CHOSEN;
		for (round = 1; round <= want; round++) {
			int best = -1;

			for (i = 0; i < nmut; i++) {
				if (mut[i].func != f || mut[i].round)
					continue;
				for (j = 0; j < nmut; j++)
					if (mut[j].func == f && mut[j].round &&
					    !strcmp(mut[i].rule, mut[j].rule))
						break;
				if (j == nmut && (best < 0 || mut[i].rank < mut[best].rank))
					best = i;
			}
			if (best >= 0)
				mut[best].round = round;
		}
	}
}

static void apply(const struct mutant *m)
{
	size_t at = 0;
	int e;

	/* The edits are in order */
	for (e = 0; e < m->edits; e++) {
		fwrite(src + at, 1, m->edit[e].at - at, stdout);
		fputs(m->edit[e].text, stdout);
		at = m->edit[e].at + m->edit[e].len;
	}
	fwrite(src + at, 1, size - at, stdout);
	if (fflush(stdout))
		die("stdout: %s", strerror(errno));
}

int main(int argc, char **argv)
{
	int i, all = argc == 4 && !strcmp(argv[3], "all");

	if (argc != 3 && argc != 4)
		die("usage: mutate FILE TAG [all | NAME] <RANGES");
	read_file(argv[1]);
	read_ranges();
	tokenize();
	find_functions();
	for (i = 0; i < nfunc; i++)
		mutate_function(i);
	make_keys();
	choose();

	for (i = 0; i < nmut; i++) {
		const struct mutant *m = &mut[i];
		char name[256];

		snprintf(name, sizeof(name), "%s:%s:%s:%d", argv[2],
			 func[m->func].name, m->rule, m->n);
		if (argc == 3 || all) {
			if (all || m->round)
				printf("%d|%s|%016llx|%d|%s\n", m->round, name,
				       (unsigned long long)m->key, m->line, m->what);
		} else if (!strcmp(name, argv[3])) {
			apply(m);
			return 0;
		}
	}
	if (argc == 4 && !all)
		die("%s: no such mutant in %s", argv[3], argv[1]);
	return 0;
}
