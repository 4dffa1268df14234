// SPDX-License-Identifier: GPL-2.0-only
/*
 * trace SOCKET PC BEGIN END DONE <symbols: where the instructions of one call go. Is a
 * debugger for a QEMU whose -gdb is the Unix socket. Lets the machine run to the
 * address BEGIN, from there on step by step to END, and so on until DONE, and prints
 * the kernel's instructions as a tree of calls and as a list of functions. Nothing
 * interrupts the steps. PC is the number of the register that is the program counter;
 * it and the addresses are hexadecimal. The symbols of the kernel are as "nm" prints
 * them.
 */
#define _GNU_SOURCE
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define KERNEL 0xffff800000000000ULL

struct symbol {
	uint64_t start;
	char name[80];
	uint64_t self;
	uint64_t calls;
};

/* One function on one way to it */
struct node {
	struct symbol *sym;
	struct node *parent;
	struct node *child;
	struct node *next;
	uint64_t self;
	uint64_t calls;
};

static struct symbol *symbols;
static size_t num_symbols;
static int sock;
static const char *pc_register;

static __attribute__((noreturn, format(printf, 1, 2))) void die(const char *fmt,
								...)
{
	va_list ap;

	fprintf(stderr, "trace: ");
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, "\n");
	exit(1);
}

static void *zalloc(size_t size)
{
	void *p = calloc(1, size);

	if (!p)
		die("no memory");
	return p;
}

/* The debugger's protocol: $DATA#SUM, answered by + */

static int get_byte(void)
{
	static unsigned char buf[4096];
	static ssize_t len, pos;

	if (pos == len) {
		len = read(sock, buf, sizeof(buf));
		if (len <= 0)
			die("QEMU is gone");
		pos = 0;
	}
	return buf[pos++];
}

static void receive(char *buf, size_t size)
{
	size_t len = 0;
	int c;

	while (get_byte() != '$')
		;
	while ((c = get_byte()) != '#')
		if (len + 1 < size)
			buf[len++] = c;
	buf[len] = 0;
	get_byte();
	get_byte();
	if (write(sock, "+", 1) != 1)
		die("cannot write to QEMU");
}

static __attribute__((format(printf, 3, 4))) void ask(char *answer, size_t size,
						      const char *fmt, ...)
{
	unsigned char sum = 0;
	char data[100], packet[110];
	va_list ap;
	char *p;
	int len;

	va_start(ap, fmt);
	vsnprintf(data, sizeof(data), fmt, ap);
	va_end(ap);
	for (p = data; *p; p++)
		sum += *p;
	len = snprintf(packet, sizeof(packet), "$%s#%02x", data, sum);
	if (write(sock, packet, len) != len)
		die("cannot write to QEMU");
	if (answer)
		receive(answer, size);
}

/* It comes with the low byte first */
static uint64_t pc(void)
{
	unsigned int byte, i;
	uint64_t value = 0;
	char buf[100];

	ask(buf, sizeof(buf), "p%s", pc_register);
	for (i = 0; i != 8; i++) {
		if (sscanf(buf + 2 * i, "%2x", &byte) != 1)
			die("no program counter: %s", buf);
		value |= (uint64_t)byte << (8 * i);
	}
	return value;
}

/* Goes on, one instruction or up to the next breakpoint; gives where it stopped */
static uint64_t resume(bool step)
{
	char buf[200];

	do {
		ask(buf, sizeof(buf), "%c", step ? 's' : 'c');
		while (buf[0] == 'O')
			receive(buf, sizeof(buf));
		if (buf[0] == 'W' || buf[0] == 'X')
			die("the machine went off");
	} while (buf[0] != 'T' && buf[0] != 'S');
	return pc();
}

static int compare_start(const void *a, const void *b)
{
	const struct symbol *x = a, *y = b;

	return x->start < y->start ? -1 : x->start > y->start;
}

static void read_symbols(void)
{
	char line[300], name[80], type;
	size_t room = 0;
	uint64_t start;

	while (fgets(line, sizeof(line), stdin)) {
		if (sscanf(line, "%" SCNx64 " %c %79s", &start, &type, name) != 3 ||
		    !strchr("tTwW", type) || start < KERNEL)
			continue;
		/* Marks of the assembler's, not functions */
		if (*name == '$')
			continue;
		if (num_symbols == room) {
			room = 2 * room + 1000;
			symbols = realloc(symbols, room * sizeof(*symbols));
			if (!symbols)
				die("no memory");
		}
		memset(&symbols[num_symbols], 0, sizeof(*symbols));
		symbols[num_symbols].start = start;
		strcpy(symbols[num_symbols++].name, name);
	}
	if (!num_symbols)
		die("no symbols on stdin");
	qsort(symbols, num_symbols, sizeof(*symbols), compare_start);
}

static struct symbol *find_symbol(uint64_t addr)
{
	size_t low = 0, high = num_symbols, mid;

	while (high - low > 1) {
		mid = (low + high) / 2;
		if (symbols[mid].start <= addr)
			low = mid;
		else
			high = mid;
	}
	/* The first of several at one address */
	while (low && symbols[low - 1].start == symbols[low].start)
		low--;
	return &symbols[low];
}

static struct node *enter(struct node *parent, struct symbol *sym)
{
	struct node **p, *node;

	for (p = &parent->child; *p; p = &(*p)->next)
		if ((*p)->sym == sym)
			break;
	if (!*p) {
		node = zalloc(sizeof(*node));
		node->sym = sym;
		node->parent = parent;
		*p = node;
	}
	(*p)->calls++;
	sym->calls++;
	return *p;
}

/* Where in the tree the instruction at addr is, after one at node */
static struct node *follow(struct node *root, struct node *node, uint64_t addr)
{
	struct symbol *sym = find_symbol(addr);
	struct node *up;

	if (addr != sym->start) {
		/* Still in it, or back in a caller */
		for (up = node; up != root; up = up->parent)
			if (up->sym == sym)
				return up;
	} else if (node != root && node->sym == sym) {
		return node;
	}
	return enter(node, sym);
}

static uint64_t total(const struct node *node)
{
	const struct node *child;
	uint64_t sum = node->self;

	for (child = node->child; child; child = child->next)
		sum += total(child);
	return sum;
}

static void print_tree(const struct node *node, int depth)
{
	const struct node *child;

	if (depth >= 0)
		printf("%9" PRIu64 " %9" PRIu64 " %7" PRIu64 "  %*s%s\n", total(node),
		       node->self, node->calls, 2 * depth, "", node->sym->name);
	for (child = node->child; child; child = child->next)
		print_tree(child, depth + 1);
}

static int compare_self(const void *a, const void *b)
{
	const struct symbol *x = a, *y = b;

	if (x->self != y->self)
		return x->self > y->self ? -1 : 1;
	return compare_start(a, b);
}

int main(int argc, char **argv)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	uint64_t begin, end, done, at, sum;
	struct node root = {}, *node;
	char buf[200];
	int i;

	if (argc != 6 || strlen(argv[1]) >= sizeof(addr.sun_path)) {
		fprintf(stderr, "usage: trace SOCKET PC BEGIN END DONE <symbols\n");
		return 2;
	}
	pc_register = argv[2];
	begin = strtoull(argv[3], NULL, 16);
	end = strtoull(argv[4], NULL, 16);
	done = strtoull(argv[5], NULL, 16);
	read_symbols();

	strcpy(addr.sun_path, argv[1]);
	sock = socket(AF_UNIX, SOCK_STREAM, 0);
	for (i = 0; connect(sock, (struct sockaddr *)&addr, sizeof(addr)); i++) {
		if (i == 300)
			die("no QEMU at %s", argv[1]);
		usleep(100000);
	}
	/* Who asks for this is told single registers */
	ask(buf, sizeof(buf), "qXfer:features:read:target.xml:0,80");
	for (i = 3; i != 6; i++) {
		ask(buf, sizeof(buf), "Z1,%s,4", argv[i]);
		if (strcmp(buf, "OK"))
			die("no breakpoint: %s", buf);
	}

	for (at = resume(false); at != done; at = resume(false)) {
		if (at != begin)
			die("stopped at %" PRIx64, at);
		node = &root;
		while ((at = resume(true)) != end) {
			if (at < KERNEL)
				continue;
			node = follow(&root, node, at);
			node->self++;
			node->sym->self++;
		}
		/* Off that breakpoint */
		resume(true);
	}
	ask(NULL, 0, "D");

	printf("%9s %9s %7s  %s\n", "with all", "itself", "calls",
	       "function, under its caller");
	print_tree(&root, -1);
	sum = total(&root);
	printf("\n%9s %7s %7s  function\n", "itself", "of all", "calls");
	qsort(symbols, num_symbols, sizeof(*symbols), compare_self);
	for (i = 0; (size_t)i != num_symbols && symbols[i].self; i++)
		printf("%9" PRIu64 " %6.1f%% %7" PRIu64 "  %s\n", symbols[i].self,
		       100.0 * symbols[i].self / sum, symbols[i].calls, symbols[i].name);
	printf("%9" PRIu64 "\n", sum);
	return 0;
}
