/* SPDX-License-Identifier: MIT */
/* Start-up of a Cortex-M without an operating system, and semihosting: the few calls by which a
 * program on an emulated or debugged board reaches its host. */
#include "start.h"

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* From link.ld: addresses, not objects. */
extern uint8_t data_start[], data_end[], data_source[], bss_start[], bss_end[], stack_top[];

int main(void);
void reset(void);
void fault(void);

static int host_call(int operation, const void *argument)
{
    register int r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

void host_write(const char *text)
{
    host_call(0x04, text); /* SYS_WRITE0 */
}

void host_exit(int status)
{
    const uint32_t reason[2] = {0x20026, (uint32_t)status}; /* the application ended */
    host_call(0x20, reason);                                /* SYS_EXIT_EXTENDED */
    for (;;) {
    }
}

/* Any fault, and so any broken precondition (Q3_CHECK ends in an undefined instruction). */
void fault(void)
{
    host_write("fault\n");
    host_exit(3);
}

void reset(void)
{
#if defined(__ARM_FP)
    *(volatile uint32_t *)0xE000ED88 |= 0xFu << 20; /* CPACR: the floating-point unit is on */
    __asm__ volatile("dsb\n isb" : : : "memory");
#endif
    memcpy(data_start, data_source, (size_t)(data_end - data_start));
    memset(bss_start, 0, (size_t)(bss_end - bss_start));
    host_exit(main());
}

/* The processor's table: the stack, then where reset and the faults lead. */
typedef union vector {
    const void *stack;
    void (*handler)(void);
} vector;

extern const vector vectors[8];
__attribute__((section(".vectors"), used)) const vector vectors[8] = {
    {.stack = stack_top}, {.handler = reset}, {.handler = fault}, {.handler = fault},
    {.handler = fault},   {.handler = fault}, {.handler = fault}, {.handler = fault}};
