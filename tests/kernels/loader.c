/*
 * Loads every program of the objects given and prints what the kernel makes of each, as
 * `overspill check --programs --json` does, on machines for which no Rust is built.
 */
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "bpf.h"
#include "libbpf.h"

#define PROGRAMS 64
#define LINE 512

struct refusal {
	char program[64];
	char why[LINE];
};

static struct refusal refused[PROGRAMS];
static int refusals;
static char failing[64]; /* The program that libbpf named last as not loaded. */
static char last[LINE];  /* The last line of the verifier's log. */
static bool first = true;

static void keep_last_line(const char *text)
{
	const char *line = text;

	for (const char *end; (end = strchr(line, '\n')); line = end + 1)
		if (end > line && strncmp(line, "processed ", 10) && strncmp(line, "-- ", 3))
			snprintf(last, sizeof(last), "%.*s", (int)(end - line), line);
}

/* libbpf tells by its messages alone which program the kernel refused. */
static int listen_to(enum libbpf_print_level level, const char *format, va_list arguments)
{
	static char text[1 << 16];
	const char *name;

	if (level == LIBBPF_DEBUG)
		return 0;
	vsnprintf(text, sizeof(text), format, arguments);
	name = strstr(text, "prog '");
	if (name && strstr(text, "failed to load"))
		sscanf(name, "prog '%63[^']'", failing);
	if (strstr(text, "PROG LOAD LOG"))
		keep_last_line(text);
	fputs(text, stderr);
	return 0;
}

static void print_text(const char *text)
{
	putchar('"');
	for (; *text; text++)
		if (*text == '"' || *text == '\\')
			printf("\\%c", *text);
		else if ((unsigned char)*text < ' ')
			putchar(' ');
		else
			putchar(*text);
	putchar('"');
}

static void print_program(const char *object, const char *name, const struct bpf_prog_info *info,
			  long milliseconds, const char *error)
{
	printf("%s\n{\"object\":", first ? "" : ",");
	first = false;
	print_text(object);
	printf(",\"program\":");
	print_text(name);
	printf(",\"loaded\":%s,\"steps\":%u,\"instructions\":%u,\"machine_code\":%u,"
	       "\"milliseconds\":%ld,\"error\":",
	       error ? "false" : "true", info->verified_insns,
	       (unsigned int)(info->xlated_prog_len / sizeof(struct bpf_insn)),
	       info->jited_prog_len, milliseconds);
	if (error)
		print_text(error);
	else
		printf("null");
	putchar('}');
}

static bool is_refused(const char *program)
{
	for (int i = 0; i < refusals; i++)
		if (!strcmp(refused[i].program, program))
			return true;
	return false;
}

/* Opens the object and loads it without the programs that were refused before. */
static struct bpf_object *load(const char *path, bool *loaded)
{
	struct bpf_object *object = bpf_object__open(path);
	struct bpf_program *program;

	if (!object) {
		fprintf(stderr, "loader: cannot open %s\n", path);
		exit(2);
	}
	bpf_object__for_each_program(program, object)
		if (is_refused(bpf_program__name(program)))
			bpf_program__set_autoload(program, false);
	*failing = *last = '\0';
	*loaded = !bpf_object__load(object);
	return object;
}

static void print_object(const char *name, struct bpf_object *object, bool loaded, long milliseconds)
{
	static const struct bpf_prog_info none;
	struct bpf_program *program;

	bpf_object__for_each_program(program, object) {
		struct bpf_prog_info info = {};
		__u32 size = sizeof(info);

		if (is_refused(bpf_program__name(program)))
			continue;
		if (loaded && !bpf_prog_get_info_by_fd(bpf_program__fd(program), &info, &size))
			print_program(name, bpf_program__name(program), &info, milliseconds, NULL);
		else
			print_program(name, bpf_program__name(program), &none, milliseconds,
				      "another program of the object is refused");
	}
	for (int i = 0; i < refusals; i++)
		print_program(name, refused[i].program, &none, milliseconds, refused[i].why);
}

static void examine(const char *path)
{
	const char *slash = strrchr(path, '/');
	char name[64];
	struct timespec begin, end;
	struct bpf_object *object;
	bool loaded;

	sscanf(slash ? slash + 1 : path, "%63[^.]", name);
	refusals = 0;
	for (;;) {
		clock_gettime(CLOCK_MONOTONIC, &begin);
		object = load(path, &loaded);
		clock_gettime(CLOCK_MONOTONIC, &end);
		if (loaded || !*failing || is_refused(failing) || refusals == PROGRAMS)
			break;
		strcpy(refused[refusals].program, failing);
		strcpy(refused[refusals++].why, *last ? last : "the verifier does not say why");
		bpf_object__close(object);
	}
	print_object(name, object, loaded,
		     (end.tv_sec - begin.tv_sec) * 1000 + (end.tv_nsec - begin.tv_nsec) / 1000000);
	bpf_object__close(object);
}

int main(int count, char **paths)
{
	libbpf_set_print(listen_to);
	putchar('[');
	for (int i = 1; i < count; i++)
		examine(paths[i]);
	puts("]");
	return 0;
}
